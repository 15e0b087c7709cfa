"""`@serve.method`: marks are found where they count, and what is no mark is an error at the user's line."""

import functools
import pickle

import cloudpickle
import fastapi
import pytest
import served_applications

from headrace import serve
from headrace.serve.graph import build
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig


class Cart:
    def __call__(self, request):
        return "cart"

    @serve.method(repeatable=False)
    def pay(self, amount):
        return amount

    @serve.method(repeatable=True)
    def show(self):
        return "cart"

    @staticmethod
    @serve.method(repeatable=False)
    def post():
        return "posted"

    @serve.method(repeatable=False)
    @classmethod
    def ship(cls):
        return cls.__name__

    def look(self):
        return "cart"


class Shop(Cart):
    def post(self):  # an override says for itself
        return "kept"

    @serve.method(repeatable=False)
    async def __call__(self, request):
        return "shop"


def unrepeatable(target, **options):
    (spec,) = build(serve.deployment(**options)(target).bind()).deployments
    return spec.unrepeatable


def test_a_marked_method_is_the_method_that_it_was():
    def pay(amount):
        return amount

    assert serve.method(repeatable=False)(pay) is pay
    assert pay(3) == Cart().pay(3) == 3
    assert (Cart.post(), Cart.ship()) == ("posted", "Cart")


def test_the_marked_methods_of_a_class():
    assert unrepeatable(Cart) == ("pay", "post", "ship")


def test_those_of_its_bases_too():
    assert unrepeatable(Shop) == ("__call__", "pay", "ship")


def test_of_a_function():
    @serve.method(repeatable=False)
    def pay(request):
        return "paid"

    assert unrepeatable(pay) == ("__call__",)
    assert unrepeatable(served_applications.hello.func_or_class) == ()


def test_with_an_ingress_no_request_may_run_twice_where_one_method_may_not():
    async def asgi(scope, receive, send):
        pass

    def web(mark):
        @serve.ingress(asgi)
        class Web:
            def pay(self):
                return "paid"

        Web.pay = mark(Web.pay)
        return Web

    assert unrepeatable(web(serve.method(repeatable=False))) == ("__call__", "pay")
    assert unrepeatable(web(serve.method(repeatable=True))) == ()


@pytest.mark.parametrize("order", [0, 1])
def test_a_route_may_be_marked(order):
    app = fastapi.FastAPI()
    decorators = [app.post("/pay"), serve.method(repeatable=False)]

    @serve.ingress(app)
    class Web:
        @decorators[order]
        @decorators[1 - order]
        def pay(self):
            return "paid"

    assert unrepeatable(Web) == ("__call__", "pay")


def test_a_decorator_around_it_keeps_the_mark():
    def loud(function):
        @functools.wraps(function)
        def inner(*args):
            return function(*args).upper()

        return inner

    class Model:
        @loud
        @serve.method(repeatable=False)
        def pay(self):
            return "paid"

    assert unrepeatable(Model) == ("pay",)
    assert Model().pay() == "PAID"


def test_the_mark_travels_with_code_by_value():
    class Model:
        @serve.method(repeatable=False)
        def pay(self):
            return "paid"

    assert unrepeatable(cloudpickle.loads(cloudpickle.dumps(Model))) == ("pay",)
    assert pickle.loads(pickle.dumps(Cart.pay)) is Cart.pay


def test_a_mark_is_no_other_code():
    def model(mark):
        class Model:
            def pay(self):
                return "paid"

        Model.pay = mark(Model.pay)
        return build(serve.deployment(Model).bind()).deployments[0]

    plain, marked = model(lambda method: method), model(serve.method(repeatable=False))
    assert (plain.unrepeatable, marked.unrepeatable) == ((), ("pay",))
    assert plain.digest == marked.digest


def test_a_deployment_that_is_not_repeatable_has_no_method_that_is():
    class Model:
        @serve.method(repeatable=True)
        def show(self):
            return "x"

    with pytest.raises(OptionError, match=r"Model\.show is marked repeatable=True.*leave Model repeatable"):
        unrepeatable(Model, repeatable=False)
    assert unrepeatable(Model) == ()


def test_a_private_method_is_refused_where_it_is_deployed():
    class Model:
        @serve.method(repeatable=False)
        def _pay(self):
            return "paid"

    with pytest.raises(OptionError, match=r"Model\._pay is marked.*private"):
        serve.deployment(Model)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(OptionTypeError, match="'repeatble' is no option of a method: did you mean 'repeatable'"):
        serve.method(repeatble=False)


def test_a_wrong_value():
    with pytest.raises(OptionTypeError, match="repeatable=0 of a method must be True or False"):
        serve.method(repeatable=0)


def test_without_options_it_says_how():
    with pytest.raises(OptionTypeError, match=r"@serve.method\(repeatable=False\)"):

        @serve.method
        def pay():
            return "paid"


@pytest.mark.parametrize("wrong", [3, Cart, serve.deployment(Cart), len, None])
def test_what_is_no_method(wrong):
    with pytest.raises(OptionTypeError, match="marks a method of a deployment, not"):
        serve.method(repeatable=False)(wrong)


def test_members_that_answer_to_any_name_are_left_alone():
    class Anything:
        def __getattr__(self, name):
            raise RuntimeError(name)

    class Model:
        member = Anything()

        def __call__(self, request):
            return "x"

    assert unrepeatable(Model) == ()


# --- hedge


class Ranker:
    @serve.method(hedge=False)
    def learn(self):
        return None

    @serve.method(hedge=True)
    def rank(self):
        return []

    @serve.method(hedge={"quantile": 0.9})
    async def search(self):
        return []

    @serve.method(repeatable=False)
    def pay(self):
        return None


def hedged(target, **options):
    (spec,) = build(serve.deployment(**options)(target).bind()).deployments
    return spec.hedged_methods


def test_methods_say_how_their_calls_are_hedged():
    own = HedgingConfig(quantile=0.9)
    assert hedged(Ranker) == {"learn": None, "rank": HedgingConfig(), "search": own}
    assert hedged(Ranker, hedge={"budget": 0.2}) == {"learn": None, "rank": HedgingConfig(budget=0.2), "search": own}
    assert hedged(Cart, hedge=True) == {}


def test_a_method_cannot_be_hedged_where_nothing_may_run_twice():
    with pytest.raises(OptionError, match=r"Ranker\.rank is marked hedge=True, but calls of a deployment"):
        build(serve.deployment(repeatable=False)(Ranker).bind())
    with pytest.raises(OptionError, match="contradict"):
        serve.method(hedge=True, repeatable=False)


def test_with_an_ingress_one_method_that_is_not_to_be_hedged_exempts_all_requests():
    app = fastapi.FastAPI()

    @serve.ingress(app)
    class Api:
        @serve.method(hedge=False)
        @app.post("/orders")
        def order(self):
            return None

    assert hedged(Api, hedge=True) == {"order": None, "__call__": None}
