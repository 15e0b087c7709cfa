"""A FastAPI application as ingress: routes on the class, pydantic models, dependencies, status codes, its docs."""

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

from headrace import serve

api = FastAPI(title="Things to do", version="2.1")


class Todo(BaseModel):
    text: str = Field(min_length=1)
    hours: float = 1.0
    tags: list[str] = []


class StoredTodo(Todo):
    id: int


def current_user(x_user: str = Header("nobody")) -> str:
    return x_user.lower()


@serve.deployment
@serve.ingress(api)
class Todos:
    def __init__(self, first: str):
        self.items = {1: StoredTodo(id=1, text=first)}

    @api.get("/")
    def index(self, user: str = Depends(current_user)):
        return {"user": user, "count": len(self.items)}

    @api.get("/todos/{number}", response_model=StoredTodo, response_model_exclude={"hours"})
    async def read(self, number: int):
        if number not in self.items:
            raise HTTPException(404, f"no todo {number}", headers={"x-hint": "see /"})
        return self.items[number]

    @api.post("/todos", status_code=201)
    async def create(self, todo: Todo) -> StoredTodo:
        number = max(self.items) + 1
        self.items[number] = StoredTodo(id=number, **todo.model_dump())
        return self.items[number]

    @api.delete("/todos/{number}", status_code=204)
    async def delete(self, number: int):
        self.items.pop(number, None)

    def count(self) -> int:
        return len(self.items)


app = Todos.bind("buy milk")
