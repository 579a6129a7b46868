"""What `mlflow models serve` answers to a request for a version: depth, or one line that says what is wrong with it.

MLflow reads a request before the model is asked. It tells what it cannot read with a stack trace of the server or with
the whole body, fails for want of a content type, and puts the photograph before the fault of a parameter. No setting of
the server and nothing in a signature changes that, so a version that is loaded in that server reads requests itself.
"""

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from metricgold.registry.scoring import Refused

SERVER = "mlflow.pyfunc.scoring_server"
JSON = "application/json"
MOST_SAID = 300  # characters of a fault: MLflow repeats the value of a parameter, whatever its length
KEYS = ("inputs", "params")


def answer_requests() -> None:
    """Where this process is MLflow's server: let it ask `answer` for versions of this package."""
    server: Any = sys.modules.get(SERVER)
    if server is None or server.invocations.__module__ == __name__:
        return
    theirs = server.invocations

    def invocations(data: Any, content_type: str | None, model: Any, input_schema: Any) -> Any:
        if model.loader_module != __package__:
            return theirs(data, content_type, model, input_schema)
        text, status = answer(data, content_type, model)
        return server.InvocationsResponse(text, status, JSON)

    server.invocations = invocations


def answer(body: bytes, content_type: str | None, model: Any) -> tuple[str, int]:
    """JSON and the HTTP status of a request, for a loaded pyfunc."""
    from mlflow.pyfunc.scoring_server import predictions_to_json

    kind = (content_type or "none").partition(";")[0].strip().lower()
    try:
        if kind != JSON:
            return Refused(f"content type is {kind:.80}, expected {JSON}").serialize_as_json(), 415
        request = request_of(body)
        text = io.StringIO()
        predictions_to_json(model.predict(request["inputs"], params=request.get("params")), text)
        return text.getvalue(), 200
    except MlflowException as error:
        return Refused(error.message[:MOST_SAID]).serialize_as_json(), error.get_http_status_code()


def request_of(body: bytes) -> Mapping[str, Any]:
    """The body of a request. Refused where it is not what is expected."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict) or "inputs" not in request:
        raise Refused("the body has no inputs, expected a JSON object with inputs and perhaps params")
    if unknown := sorted(set(request) - set(KEYS)):
        raise Refused(f"unknown key {unknown[0][:80]} in the body, expected {' and '.join(KEYS)}")
    if not isinstance(request.get("params"), dict | None):
        raise Refused("params must be a JSON object")
    return request
