"""The handshake between hosts, end against end, without sockets: who does not hold the secret gets nowhere."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.errors import ProtocolError
from headrace.wire.handshake import GREETING, MAC_BYTES, MAX_BYTES, NONCE_BYTES, Handshake, HandshakeError

SECRET = bytes(range(32))
OTHER = bytes(range(1, 33))


def ends(secret: bytes = SECRET, other: bytes = SECRET, **kinds: str) -> tuple[Handshake, Handshake]:
    return (
        Handshake(secret, initiator=True, purpose=kinds.get("initiator", "")),
        Handshake(other, initiator=False, purpose=kinds.get("acceptor", "")),
    )


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


def give(end: Handshake, data: bytes, cuts: list[int]) -> bytes:
    return b"".join(end.feed(piece) for piece in pieces(data, cuts))


Cuts = st.lists(st.integers(0, MAX_BYTES), max_size=8)


@given(Cuts, Cuts, Cuts, st.binary(max_size=50))
def test_both_ends_are_done_however_the_bytes_are_split(first: list[int], second: list[int], third: list[int], rest):
    initiator, acceptor = ends()
    assert acceptor.begin() == b""
    answer = give(acceptor, initiator.begin(), first)
    proof = give(initiator, answer, second)
    assert initiator.done
    assert not acceptor.done
    assert initiator.rest == b""
    assert give(acceptor, proof + rest, third) == b""
    assert acceptor.done
    assert acceptor.rest == rest


@pytest.mark.parametrize(("secret", "other"), [(SECRET, OTHER), (OTHER, SECRET)])
def test_the_initiator_refuses_an_acceptor_with_another_secret(secret: bytes, other: bytes):
    initiator, acceptor = ends(secret, other)
    answer = acceptor.feed(initiator.begin())
    with pytest.raises(HandshakeError, match="another secret"):
        initiator.feed(answer)
    assert not initiator.done


@given(st.binary(min_size=MAC_BYTES, max_size=MAC_BYTES), st.binary(max_size=100))
def test_the_acceptor_refuses_whoever_cannot_prove_it(proof: bytes, more: bytes):
    initiator, acceptor = ends()
    acceptor.feed(initiator.begin())
    with pytest.raises(HandshakeError, match="another secret"):
        acceptor.feed(proof + more)
    assert not acceptor.done
    assert acceptor.rest == b""


def test_two_that_mean_different_things_do_not_meet():
    initiator, acceptor = ends(initiator="replica a#1", acceptor="replica a#2")
    with pytest.raises(HandshakeError, match="another process"):
        initiator.feed(acceptor.feed(initiator.begin()))
    initiator, acceptor = ends(initiator="replica a#1", acceptor="replica a#1")
    acceptor.feed(initiator.feed(acceptor.feed(initiator.begin())))
    assert acceptor.done


def test_the_role_and_the_purpose_cannot_be_shifted_into_each_other():
    seen = set()
    for purpose in ("", "a", "acceptor", "initiator", "\x00", "\x00a"):
        initiator = Handshake(SECRET, initiator=True, purpose=purpose)
        acceptor = Handshake(SECRET, initiator=False, purpose=purpose)
        initiator._nonce = acceptor._nonce = bytes(NONCE_BYTES)
        answer = acceptor.feed(initiator.begin())
        seen |= {answer[-MAC_BYTES:], initiator.feed(answer)}
    assert len(seen) == 12


def test_what_an_end_said_proves_nothing_when_it_is_said_to_it():
    """Reflection: an attacker without the secret answers each end with the end's own words."""
    _, acceptor = ends()
    # As an initiator: it echoes the acceptor's proof.
    answer = acceptor.feed(GREETING + os.urandom(NONCE_BYTES))
    with pytest.raises(HandshakeError):
        acceptor.feed(answer[-MAC_BYTES:])
    # As an acceptor: it echoes the initiator's nonce, and makes two initiators answer each other.
    first, second = ends()[0], ends()[0]
    with pytest.raises(HandshakeError):
        first.feed(second.begin() + bytes(MAC_BYTES))


def test_an_acceptor_cannot_be_made_to_prove_another_ones_initiator():
    """Two sessions at once: the challenge of the one is given to the other, whose proof is then used in the first."""
    _, first = ends()
    _, second = ends()
    challenge = first.feed(GREETING + os.urandom(NONCE_BYTES))[len(GREETING) : len(GREETING) + NONCE_BYTES]
    proof = second.feed(GREETING + challenge)[-MAC_BYTES:]
    with pytest.raises(HandshakeError):
        first.feed(proof)


def test_a_recorded_handshake_is_of_no_use_again():
    initiator, acceptor = ends()
    opening = initiator.begin()
    answer = acceptor.feed(opening)
    proof = initiator.feed(answer)
    acceptor.feed(proof)
    assert acceptor.done
    _, again = ends()
    again.feed(opening)
    with pytest.raises(HandshakeError):
        again.feed(proof)
    newcomer, _ = ends()
    with pytest.raises(HandshakeError):
        newcomer.feed(answer)


@given(st.integers(0, (len(GREETING) + NONCE_BYTES) * 8 - 1))
def test_an_opening_with_a_bit_flipped_ends_nowhere(bit: int):
    initiator, acceptor = ends()
    with pytest.raises(HandshakeError):
        initiator.feed(acceptor.feed(flipped(initiator.begin(), bit)))
    assert not initiator.done
    assert not acceptor.done


@given(st.integers(0, MAX_BYTES * 8 - 1))
def test_an_answer_with_a_bit_flipped_is_refused(bit: int):
    initiator, acceptor = ends()
    with pytest.raises(HandshakeError):
        initiator.feed(flipped(acceptor.feed(initiator.begin()), bit))
    assert not initiator.done


@given(st.integers(0, MAC_BYTES * 8 - 1))
def test_a_proof_with_a_bit_flipped_is_refused(bit: int):
    initiator, acceptor = ends()
    proof = initiator.feed(acceptor.feed(initiator.begin()))
    with pytest.raises(HandshakeError):
        acceptor.feed(flipped(proof, bit))
    assert not acceptor.done


@given(st.integers(0, MAX_BYTES - 1))
def test_of_a_message_cut_short_an_end_waits_for_the_rest(length: int):
    initiator, acceptor = ends()
    answer = acceptor.feed(initiator.begin())
    assert initiator.feed(answer[:length]) == b""
    assert not initiator.done
    assert initiator.feed(answer[length:]) != b""
    assert initiator.done


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_garbage_never_gets_in_and_is_not_kept(chunks: list[bytes], initiator: bool):
    end = Handshake(SECRET, initiator=initiator)
    for chunk in chunks:
        try:
            end.feed(chunk)
        except ProtocolError:
            with pytest.raises(HandshakeError):
                end.feed(b"")
        assert not end.done
        assert end.rest == b""
        assert len(end._buffer) <= MAX_BYTES


def test_garbage_is_refused_with_its_first_byte():
    with pytest.raises(HandshakeError, match="does not begin"):
        Handshake(SECRET, initiator=False).feed(b"G")


def test_nobody_speaks_before_its_turn():
    initiator, acceptor = ends()
    with pytest.raises(HandshakeError, match="its turn"):
        acceptor.feed(initiator.begin() + b"x")
    initiator, acceptor = ends()
    answer = acceptor.feed(initiator.begin())
    with pytest.raises(HandshakeError, match="its turn"):
        initiator.feed(answer + b"x")
    assert initiator.rest == b""


def test_a_short_secret_is_none():
    with pytest.raises(ValueError, match="32 bytes"):
        Handshake(b"short", initiator=True)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
