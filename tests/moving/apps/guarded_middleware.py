"""FastAPI with middleware, CORS, a lifespan, a router and a mounted application, under a prefix."""

from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, RedirectResponse

from headrace import serve


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.words = ["loaded"]
    yield
    app.state.words.clear()


api = FastAPI(lifespan=lifespan)
api.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"], allow_methods=["GET"])
router = APIRouter(prefix="/v1", tags=["v1"])
admin = FastAPI(title="admin")
api.mount("/admin", admin)


@api.middleware("http")
async def guard(request: Request, call_next):
    if request.headers.get("x-token") == "wrong":
        return JSONResponse({"detail": "wrong token"}, status_code=401)
    response = await call_next(request)
    response.headers["x-guarded"] = "yes"
    return response


@admin.get("/health")
def health(request: Request):
    return {"root_path": request.scope["root_path"]}


@router.get("/words")
async def words(request: Request):
    return request.app.state.words


@api.get("/old")
async def old():
    return RedirectResponse("v1/words", status_code=307)


api.include_router(router)


@serve.deployment
@serve.ingress(api)
class Guarded:
    @api.get("/path")
    def path(self, request: Request):
        return {"path": request.url.path, "root_path": request.scope["root_path"], "me": type(self).__name__}

    @api.get("/named")
    def named(self, request: Request):
        return str(request.url_for("words").path)


app = Guarded.bind()
