"""A bare httpx loop."""

import asyncio

import httpx
from common import BASE, CONCURRENCY, measure, payload

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
client = httpx.AsyncClient(limits=limits, timeout=60)


async def one(question):
    headers = {"authorization": "Bearer sk-bench"}
    response = await client.post(f"{BASE}/chat/completions", json=payload(question), headers=headers)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


async def everything(questions):
    waiting, answers = iter(questions), []

    async def worker():
        for question in waiting:
            answers.append(await one(question))

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return answers


measure(lambda questions: loop.run_until_complete(everything(questions)))
