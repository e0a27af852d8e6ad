"""A bare aiohttp loop: the least that a careful programmer writes by hand."""

import asyncio

import aiohttp
from common import BASE, CONCURRENCY, measure, payload

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


async def _session():
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60))


session = loop.run_until_complete(_session())


async def one(question):
    headers = {"authorization": "Bearer sk-bench"}
    async with session.post(f"{BASE}/chat/completions", json=payload(question), headers=headers) as response:
        response.raise_for_status()
        return (await response.json())["choices"][0]["message"]["content"]


async def everything(questions):
    waiting, answers = iter(questions), []

    async def worker():
        for question in waiting:
            answers.append(await one(question))

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return answers


measure(lambda questions: loop.run_until_complete(everything(questions)))
loop.run_until_complete(session.close())
