"""Uploads: FastAPI's UploadFile and form fields, and a body that is read as it comes."""

from typing import Annotated

from fastapi import FastAPI, File, Form, Request, UploadFile

from headrace import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Uploads:
    @api.post("/files")
    async def files(self, note: Annotated[str, Form()], files: Annotated[list[UploadFile], File()]):
        sizes = {file.filename: len(await file.read()) for file in files}
        return {"note": note, "sizes": sizes, "type": files[0].content_type}

    @api.post("/stream")
    async def stream(self, request: Request):
        size = parts = 0
        async for part in request.stream():
            size += len(part)
            parts += bool(part)
        return {"size": size, "more_than_one": parts > 1}


app = Uploads.bind()
