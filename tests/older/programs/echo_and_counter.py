"""0.8: a function and a class behind routes, from scripts and from handles."""

import httpx as requests

from headrace import serve

serve.init(http_port=8000)


def echo(flask_request):
    return "hello " + flask_request.args.get("name", "serve!")


serve.create_backend("echo:v1", echo)
serve.create_endpoint("my_endpoint", backend="echo:v1", route="/echo", methods=["GET", "POST"])

print(requests.get("http://127.0.0.1:8000/echo").text)
print(requests.get("http://127.0.0.1:8000/echo", params={"name": "ray"}).text)
print(serve.get(serve.get_handle("my_endpoint").remote(name="handle")))


class MagicCounter:
    def __init__(self, increment):
        self.increment = increment

    def __call__(self, flask_request, base_number=None):
        if serve.context.web:
            base_number = int(flask_request.args.get("base_number", "0"))
        return base_number + self.increment

    def describe(self, flask_request):
        return f"adds {self.increment}"


serve.create_backend("counter:v1", MagicCounter, 42)  # increment=42
serve.create_endpoint("magic_counter", backend="counter:v1", route="/counter")

print(requests.get("http://127.0.0.1:8000/counter?base_number=100").text)
handle = serve.get_handle("magic_counter")
print(sum(serve.get([handle.remote(base_number=i) for i in range(5)])))
print(handle.options("describe").remote().result())
print(requests.get("http://127.0.0.1:8000/counter", headers={"X-SERVE-CALL-METHOD": "describe"}).text)
print(requests.post("http://127.0.0.1:8000/counter").status_code)


def body(flask_request):
    return {"json": flask_request.json, "bytes": len(flask_request.data), "form": flask_request.form.get("a")}


serve.create_backend("body", body)
serve.create_endpoint("body", backend="body", route="/body", methods=["POST"])
print(requests.post("http://127.0.0.1:8000/body", json={"x": [1, 2]}).json())
print(requests.post("http://127.0.0.1:8000/body", data={"a": "1"}).json())
print(requests.post("http://127.0.0.1:8000/body", content=b"\xff" * 3_000_000).json())

print(sorted(serve.list_backends()), sorted(serve.list_endpoints()))
print(sorted({figure["info"]["backend"] for figure in serve.stat()}))
