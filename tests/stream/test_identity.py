"""What tells adapters apart: class, settings, and the code of a user's own."""

from dspy_stream.adapters import ChatAdapter, JSONAdapter, TwoStepAdapter, XMLAdapter
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.stream.identity import adapter_identity


def own(words):
    """A user's adapter whose one method says ``words``."""
    namespace = {}
    exec(f"def format_task_description(self, signature): return {words!r}", namespace)
    return type("Own", (ChatAdapter,), {**namespace, "__module__": "job"})()


def test_the_same_adapter_is_the_same():
    assert adapter_identity(ChatAdapter()) == adapter_identity(ChatAdapter())
    assert adapter_identity(own("Answer.")) == adapter_identity(own("Answer."))


def test_class_settings_and_code_tell_adapters_apart():
    made = [
        ChatAdapter(),
        ChatAdapter(use_json_adapter_fallback=True),
        ChatAdapter(use_native_function_calling=True),
        JSONAdapter(),
        XMLAdapter(),
        TwoStepAdapter(ScriptedLM("x", model="scripted/one")),
        TwoStepAdapter(ScriptedLM("x", model="scripted/two")),
        TwoStepAdapter("openai/gpt-4o-mini"),
        own("Answer."),
        own("Answer briefly."),
    ]
    seen = [adapter_identity(adapter) for adapter in made]
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])


def test_an_attribute_that_is_switched_on_an_object_counts():
    adapter = ChatAdapter()
    adapter.parallel_tool_calls = True
    assert adapter_identity(adapter) != adapter_identity(ChatAdapter())
