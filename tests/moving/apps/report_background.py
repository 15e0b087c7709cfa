"""FastAPI with a StreamingResponse, and with background tasks that run when the answer is on its way."""

import asyncio

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse

from headrace import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Reports:
    def __init__(self):
        self.sent: list[str] = []
        self.release = asyncio.Event()

    def note(self, line: str) -> None:
        self.sent.append(line)

    async def note_when_released(self, line: str) -> None:
        await self.release.wait()
        self.sent.append(line)

    @api.get("/csv")
    async def csv(self, rows: int = 3) -> StreamingResponse:
        async def lines():
            yield "row,square\n"
            for row in range(rows):
                yield f"{row},{row * row}\n"

        headers = {"content-disposition": "attachment; filename=squares.csv"}
        return StreamingResponse(lines(), media_type="text/csv", headers=headers)

    @api.post("/mail/{address}", status_code=202)
    async def mail(self, address: str, tasks: BackgroundTasks):
        tasks.add_task(self.note, f"plain to {address}")
        tasks.add_task(self.note_when_released, f"async to {address}")
        return {"queued": address}

    @api.post("/release")
    async def let_go(self):
        self.release.set()

    @api.get("/sent")
    async def read_sent(self) -> list[str]:
        return self.sent


app = Reports.bind()
