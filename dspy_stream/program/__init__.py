"""What is asked of a model: signatures, their fields, examples, predictions and parameters."""

from dspy_stream.program.example import Example
from dspy_stream.program.fields import InputField, OutputField, infer_prefix
from dspy_stream.program.parameters import Parameters, PredictorParameters
from dspy_stream.program.prediction import Completions, Prediction
from dspy_stream.program.signature import Signature, SignatureMeta, ensure_signature, make_signature

__all__ = [
    "Completions",
    "Example",
    "InputField",
    "OutputField",
    "Parameters",
    "Prediction",
    "PredictorParameters",
    "Signature",
    "SignatureMeta",
    "ensure_signature",
    "infer_prefix",
    "make_signature",
]
