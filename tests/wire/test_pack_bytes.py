"""headrace.wire.pack: modules to bytes and back; hostile bytes are told to be no pack."""

from __future__ import annotations

import hashlib
import tracemalloc
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.errors import PayloadError, ProtocolError
from headrace.wire import pack as packs
from headrace.wire.pack import MAGIC, PackedModule, is_pack_name, may_be_packed, name_of, pack, unpack

MODEL = PackedModule("shop.model", "/app/shop/model.py", b"x = 1\n")
SHOP = PackedModule("shop", "/app/shop/__init__.py", b"", ("/app/shop",))
PARTS = PackedModule("parts", "", None, ("/app/parts", "/more/parts"))


def made_of(content: object) -> bytes:
    return MAGIC + zlib.compress(msgspec.msgpack.encode(content))


def test_what_is_packed_is_unpacked() -> None:
    assert unpack(pack([MODEL, SHOP, PARTS])) == {"parts": PARTS, "shop": SHOP, "shop.model": MODEL}
    assert unpack(pack([])) == {}


def test_the_bytes_are_the_same_in_any_order() -> None:
    assert pack([MODEL, SHOP, PARTS]) == pack([PARTS, MODEL, SHOP])


def test_its_name_is_its_hash() -> None:
    data = pack([MODEL])
    assert name_of(data) == hashlib.sha256(data).hexdigest()
    assert is_pack_name(name_of(data))
    for wrong in ("", "../x", "a" * 63, "A" * 64, f"{'a' * 64}\n", "g" * 64):
        assert not is_pack_name(wrong)


def test_sources_are_small_in_it() -> None:
    source = b"def method(self, value):\n    return self.other(value)\n" * 1000
    assert len(pack([PackedModule("m", "/m.py", source)])) < len(source) / 20


@pytest.mark.parametrize("name", ["os", "json.decoder", "__main__", "../x", "a..b", "", "a/b", "a b", ".a", "sys"])
def test_names_that_no_pack_has(name: str) -> None:
    assert not may_be_packed(name)
    with pytest.raises(ProtocolError, match="cannot have a module"):
        pack([PackedModule(name, "/x.py", b"")])
    with pytest.raises(ProtocolError, match="cannot have a module"):
        unpack(made_of([[name, "/x.py", b"", None]]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "was expected"),
        (b"PK\x03\x04 a zip file", "was expected"),
        (MAGIC, "cut off"),
        (MAGIC + b"no zlib", "broken"),
        (pack([MODEL])[:-1], "cut off"),
        (pack([MODEL]) + b"more", "goes on after its end"),
        (made_of({"name": "os"}), "broken"),
        (made_of([["m", "/m.py", "text for bytes", 7]]), "broken"),
        (made_of([["m", "/m.py", None, None]]), "without its source"),
        (made_of([["m", "/m.py", b"", None]] * 2), "two modules of one name"),
        (MAGIC + zlib.compress(b"\xc1"), "broken"),
        (MAGIC + zlib.compress(b"\x91" * 100_000), "broken"),
    ],
)
def test_bytes_that_are_no_pack(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        unpack(data)


def test_any_damage_is_noticed_as_such() -> None:
    data = pack([MODEL, SHOP])

    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def check(at: int, by: int) -> None:
        broken = bytearray(data)
        broken[at] ^= by
        with pytest.raises(ProtocolError):
            unpack(bytes(broken))

    check()


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_UNPACKED_BYTES", 1024 * 1024)
    bomb = MAGIC + zlib.compress(bytes(64 * 1024 * 1024), 9)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="more than"):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_what_is_too_large_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(PayloadError, match=r"/app/weights.py \(5,000 bytes\).*keep data in files"):
        pack([MODEL, PackedModule("weights", "/app/weights.py", b"#" * 5000)])
