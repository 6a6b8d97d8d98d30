"""A server that answers Predict requests like TF Serving, in a process without Keras.

    python tf_serving_stand_in.py FOLDER NAME

serves FOLDER/<highest number> as NAME over gRPC and REST, and prints {"grpc": port, "rest": port}. The
model `flaky` is the same one, unavailable for its first two requests per protocol; `slow` takes two seconds.
"""

import base64
import json
import re
import sys
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import without_keras  # noqa: F401 (before TensorFlow)

# isort: split
import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

folder, name = sys.argv[1:]
version = max((p for p in Path(folder).iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
loaded = tf.saved_model.load(str(version))
unavailable = {"grpc": 2, "rest": 2}


class Refusal(Exception):
    pass


def predict(wire, model, wanted, signature, inputs):
    if model not in (name, "flaky", "slow") or wanted not in (0, int(version.name)):
        raise Refusal("NOT_FOUND", 404, f"Servable not found for request: {model}")
    if model == "slow":
        time.sleep(2)
    if model == "flaky" and unavailable[wire]:
        unavailable[wire] -= 1
        raise Refusal("UNAVAILABLE", 503, "still loading")
    if signature not in loaded.signatures:
        raise Refusal("INVALID_ARGUMENT", 400, f"no signature {signature}")
    answer = loaded.signatures[signature](**inputs)
    return {key: value.numpy() for key, value in answer.items()}


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request, context):
        spec = request.model_spec
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        try:
            found = predict("grpc", spec.name, spec.version.value, spec.signature_name, inputs)
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.args[0]), refusal.args[2])
        response = predict_pb2.PredictResponse()
        for key, value in found.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response


class Rest(BaseHTTPRequestHandler):
    def do_POST(self):
        model, wanted = re.fullmatch(
            r"/v1/models/([^/]+?)(?:/versions/(\d+))?:predict", self.path
        ).groups()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        contents = [base64.b64decode(one["b64"]) for one in body["instances"]]
        try:
            found = predict(
                "rest", model, int(wanted or 0), body["signature_name"],
                {"bytes": tf.constant(contents)},
            )  # fmt: skip
            columns = {key: json_of(value) for key, value in found.items()}
            rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
            code, document = 200, {"predictions": rows}
        except Refusal as refusal:
            code, document = refusal.args[1], {"error": refusal.args[2]}
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


def json_of(array):
    if array.dtype == object:
        return [x.decode() if isinstance(x, bytes) else json_of(x) for x in array]
    return array.tolist()


assert not {"keras", "keras_transfer"} & set(sys.modules)
server = grpc.server(futures.ThreadPoolExecutor(4))
prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
rest = ThreadingHTTPServer(("127.0.0.1", 0), Rest)
print(json.dumps({"grpc": port, "rest": rest.server_address[1]}), flush=True)
rest.serve_forever()
