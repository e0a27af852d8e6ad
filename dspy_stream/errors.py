"""Every error the package raises, in one tree.

    DSPyStreamError
    ├── ConfigurationError            the user's settings (also ValueError)            exit 78
    │   ├── SignatureError            a signature that cannot be built (program/refusals.py)
    │   ├── SavedStateError           a state or program not saved or read (the same file)
    │   ├── FlowError                 a flow that cannot be compiled or found
    │   └── ProgramChanged            an unfinished run belongs to another program
    ├── InputError                    a source that cannot be read                     exit 74
    │   └── SourceChanged             the file is not the one the run began with
    ├── OutputError                   a sink that cannot be written                    exit 74
    ├── RowError                      one row; ends in the dead letters
    │   ├── RecordError               the row's bytes are no record
    │   ├── IdConflict                one row id, two payloads
    │   ├── AdapterRenderError        its inputs cannot be put into a prompt (also ValueError)
    │   ├── RowTimeout                the row used up its time
    │   └── PoisonRow                 the row killed its process too often
    ├── AdapterParseError             the model's answer is not what was asked for (a row)
    ├── StateError                    the state folder
    │   ├── StateLocked               another process owns it; try later               exit 75
    │   └── StateCorrupt              damaged, or of another version                   exit 76
    ├── TooManyFailures               the dead-letter limit was reached                exit 65
    ├── BudgetExceeded                the run may not spend more; resumable            exit 77
    ├── OutOfMemory                   the process has no memory left                   exit 74
    ├── ClockSetBack                  the machine's clock jumped back (stream/wall.py) exit 74
    └── LMError                       a model call
        ├── LMConfigurationError      no such provider, no key, bad settings           exit 78
        │   └── LMNotConfiguredError  no model was named (also ValueError)
        ├── LMUnavailableError        not asked: its circuit is open (retryable)
        ├── LMBatchHalted             batches cannot go on; stops the flow, resumable      exit 69
        ├── LMTransportError          no complete answer arrived (retryable)
        │   └── LMIncompleteError     the answer was cut short (retryable)
        └── LMProviderError           the provider answered with an error
            ├── LMAuthError           401, 403; stops the flow                         exit 78
            ├── LMBillingError        402, quota used up; stops the flow               exit 78
            ├── LMRateLimitError      429 (retryable)
            ├── LMTimeoutError        the deadline passed, or 408 (retryable)
            ├── LMServerError         5xx (retryable)
            ├── LMBatchError          no batch answered it; this row only
            └── LMInvalidRequestError 400, 413, 422; this row only
                ├── ContextWindowExceededError
                └── LMUnsupportedModelError   404; stops the flow                      exit 78

Each class says three things that the engine acts on, so that no caller has to compare
messages: ``scope`` (whom it concerns), ``retryable``, and ``exit_code`` for the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

__all__ = [
    "EXIT_CONFIG",
    "EXIT_CORRUPT",
    "EXIT_DATA",
    "EXIT_IO",
    "EXIT_LOCKED",
    "EXIT_TERMINATED",
    "EXIT_UNAVAILABLE",
    "EXIT_USAGE",
    "EXIT_BUDGET",
    "AdapterParseError",
    "AdapterRenderError",
    "BudgetExceeded",
    "ConfigurationError",
    "ContextWindowExceededError",
    "DSPyStreamError",
    "FlowError",
    "IdConflict",
    "InputError",
    "LMAuthError",
    "LMBatchError",
    "LMBatchHalted",
    "LMBillingError",
    "LMConfigurationError",
    "LMError",
    "LMIncompleteError",
    "LMInvalidRequestError",
    "LMNotConfiguredError",
    "LMProviderError",
    "LMRateLimitError",
    "LMServerError",
    "LMTimeoutError",
    "LMTransportError",
    "LMUnavailableError",
    "LMUnsupportedModelError",
    "OutOfMemory",
    "OutputError",
    "PoisonRow",
    "ProgramChanged",
    "RecordError",
    "RowError",
    "RowTimeout",
    "SignatureError",
    "SourceChanged",
    "StateCorrupt",
    "StateError",
    "StateLocked",
    "TooManyFailures",
]

EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_IO = 74
EXIT_LOCKED = 75
EXIT_CORRUPT = 76
EXIT_BUDGET = 77
EXIT_CONFIG = 78
EXIT_TERMINATED = 143

Scope = Literal["row", "flow", "process"]


class DSPyStreamError(Exception):
    """Base of every error raised by this package."""

    scope: ClassVar[Scope] = "process"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    code: str = "error"


class ConfigurationError(DSPyStreamError, ValueError):
    """A setting is wrong; nothing was started."""

    exit_code = EXIT_CONFIG
    code = "configuration"


class SignatureError(ConfigurationError):
    """A signature cannot be built; the message names the field."""

    code = "signature"


class FlowError(ConfigurationError):
    """A flow cannot be compiled, found or run as asked."""

    code = "flow"


class ProgramChanged(ConfigurationError):
    """The unfinished run in this state folder was started with another program."""

    code = "program_changed"


class InputError(DSPyStreamError):
    """A source cannot be read at all."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_IO
    code = "input"


class SourceChanged(InputError):
    """A source shrank or was replaced after the run had begun."""

    code = "source_changed"


class OutputError(DSPyStreamError):
    """A sink cannot be written. ``row`` is the row that has no form there, where that is the reason."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_IO
    code = "output"
    row: Any = None


class RowError(DSPyStreamError):
    """One row cannot be processed; the flow goes on."""

    scope: ClassVar[Scope] = "row"
    exit_code = EXIT_DATA
    code = "row"


class RecordError(RowError):
    """The bytes of a row are not a record of the source's format."""

    code = "bad_record"


class IdConflict(RowError):
    """Two rows share one id but not one payload."""

    code = "id_conflict"


class RowTimeout(RowError):
    """A row was not finished within its step's time limit."""

    code = "timeout"


class PoisonRow(RowError):
    """A row ended the process several times and is not tried again."""

    code = "poison"


class AdapterRenderError(RowError, ValueError):
    """A row's inputs cannot be put into a prompt; the message names the field."""

    code = "render"


class AdapterParseError(RowError):
    """The model's answer could not be turned into the signature's fields.

    Attributes:
        adapter_name: class name of the adapter.
        signature: the signature that was asked for.
        lm_response: the text the model sent.
        parsed_result: the fields that could be read before the failure, by name.
        reason: what is wrong (``message``), in words meant for the model as much as for the reader.
    """

    code = "parse"

    def __init__(
        self,
        adapter_name: str,
        signature: Any,
        lm_response: str,
        message: str | None = None,
        parsed_result: dict[str, Any] | None = None,
    ) -> None:
        self.adapter_name, self.signature = adapter_name, signature
        self.lm_response = lm_response
        self.reason = message or "it is not what was asked for"
        self.parsed_result = parsed_result
        wanted = ", ".join(getattr(signature, "output_fields", ()))
        text = f"Adapter {adapter_name} failed to parse the LM response, could not read the answer: "
        text += f"{self.reason}. Expected to find output fields in the LM response: [{wanted}]"
        if parsed_result is not None:
            text += f". Actual output fields parsed from the LM response: [{', '.join(parsed_result)}]"
        super().__init__(text)


class StateError(DSPyStreamError):
    """The state folder cannot be used."""

    exit_code = EXIT_IO
    code = "state"


class StateLocked(StateError):
    """Another process owns the state folder."""

    exit_code = EXIT_LOCKED
    code = "state_locked"


class StateCorrupt(StateError):
    """The state folder is damaged, or was written by another version."""

    exit_code = EXIT_CORRUPT
    code = "state_corrupt"


class TooManyFailures(DSPyStreamError):
    """More rows failed than the dead-letter limit allows."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_DATA
    code = "too_many_failures"


class BudgetExceeded(DSPyStreamError):
    """What the run was allowed to spend is used up; a higher budget resumes it.

    Attributes:
        limit: the limit that was reached: ``max_cost``, ``max_tokens`` or ``max_calls``.
        report: what the run did until then, as ``flow.run`` returns it; None outside a run.
    """

    limit: str = ""
    report: Any = None

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_BUDGET
    code = "budget"


class OutOfMemory(DSPyStreamError):
    """The process has no memory left."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_IO
    code = "out_of_memory"


class LMError(DSPyStreamError):
    """A model call failed; its text begins with ``[model]`` where the message does not name the model.

    Attributes:
        model: the model's name as the user wrote it.
        provider: provider prefix, such as ``openai``.
        status: HTTP status, where there was one.
        provider_code: the provider's own error code, where it sent one.
        request_id: the provider's id of the request, for support.
        retry_after: seconds the provider asked to wait, already parsed and clamped.
        attempts, waited: tries made, and seconds waited for a permit, which are not the call's own time.
        sent: False where the request never left, as when a connection is refused.
        tried: True where the model itself has tried again as often as it may: nobody else does.
    """

    scope: ClassVar[Scope] = "row"
    exit_code = EXIT_UNAVAILABLE
    code = "lm_error"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        status: int | None = None,
        provider_code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message if not model or model in message else f"[{model}] {message}".rstrip())
        self.message = message
        self.code = code or self.code
        self.model, self.provider, self.status = model, provider, status
        self.provider_code, self.request_id, self.retry_after = provider_code, request_id, retry_after
        self.attempts, self.waited = 1, 0.0
        self.sent, self.tried = True, False


class LMConfigurationError(LMError, ConfigurationError):
    """The model cannot be called with these settings."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_CONFIG
    code = "configuration"


class LMNotConfiguredError(LMConfigurationError, ValueError):
    """No model was named."""

    code = "not_configured"


class LMUnavailableError(LMError):
    """The model was not asked, because it has failed too often just now; ``retry_after`` says when it is."""

    retryable = True
    code = "unavailable"


class LMBatchHalted(LMError):
    """Batches cannot go on: one was cancelled or lost at the provider, refused, or nobody answers."""

    scope: ClassVar[Scope] = "flow"
    code = "batch_halted"


class LMTransportError(LMError):
    """No complete answer arrived."""

    retryable = True
    code = "transport"


class LMIncompleteError(LMTransportError):
    """The answer was cut short or is not an answer."""

    code = "incomplete"


class LMProviderError(LMError):
    """The provider answered with an error."""

    code = "provider"


class LMAuthError(LMProviderError):
    """The key is missing, wrong, or not allowed to use this model."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_CONFIG
    code = "auth"


class LMBillingError(LMProviderError):
    """The account has no credit left."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_CONFIG
    code = "billing"


class LMRateLimitError(LMProviderError):
    """The provider asks for fewer requests.

    ``held`` names the endpoint and the calls per second to which it holds us, None while it does not.
    """

    retryable = True
    code = "rate_limit"
    held: tuple[str, float | None] | None = None


class LMTimeoutError(LMProviderError):
    """The answer did not arrive in time."""

    retryable = True
    code = "lm_timeout"


class LMServerError(LMProviderError):
    """The provider failed."""

    retryable = True
    code = "server"


class LMBatchError(LMProviderError):
    """The request was in several batches, and none of them answered it."""

    code = "batch"


class LMInvalidRequestError(LMProviderError):
    """The provider refuses this request; the next row may pass."""

    code = "invalid_request"


class ContextWindowExceededError(LMInvalidRequestError):
    """The prompt is longer than the model can read."""

    code = "context_window"

    def __init__(self, message: str = "Context window exceeded", **known: Any) -> None:
        super().__init__(message, **known)


class LMUnsupportedModelError(LMInvalidRequestError):
    """The provider does not know this model."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_CONFIG
    code = "unsupported_model"
