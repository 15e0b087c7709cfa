"""The no-op model as a bare ASGI function: the least that an ASGI server can be asked to do."""

import msgspec

decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    reply = encode({"y": sum(decode(body)["x"])})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})
