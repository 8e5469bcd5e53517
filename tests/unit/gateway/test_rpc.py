"""Procedures are found by name; what isn't there is said in the protocol's words."""

import pytest

from gateway.protocol.codes import METHOD_NOT_FOUND, NOT_AVAILABLE, ErrorCode
from gateway.rpc import Caller, Procedures, RPCError


async def list_invoices(caller: Caller, data: bytes) -> bytes:
    return b'["%b"]' % caller.user.encode()


async def echo(caller: Caller, data: bytes) -> bytes:
    return data


def test_without_procedures_calls_are_not_available() -> None:
    found = Procedures().find("invoice.list")

    assert found is NOT_AVAILABLE
    assert found.code == 108


def test_a_name_that_nobody_registered_is_not_found() -> None:
    procedures = Procedures()
    procedures.register("invoice.list", list_invoices)

    found = procedures.find("invoice.delete")

    assert found is METHOD_NOT_FOUND
    assert found.code == 104


def test_each_name_finds_its_own_procedure() -> None:
    procedures = Procedures()
    procedures.register("invoice.list", list_invoices)
    procedures.register("echo", echo)

    assert procedures.find("invoice.list") is list_invoices
    assert procedures.find("echo") is echo


@pytest.mark.parametrize("name", ["Echo", "echo ", "ech", ""])
def test_names_are_compared_whole_and_as_written(name: str) -> None:
    procedures = Procedures()
    procedures.register("echo", echo)

    assert procedures.find(name) is METHOD_NOT_FOUND


def test_a_name_is_given_once() -> None:
    procedures = Procedures()
    procedures.register("echo", echo)

    with pytest.raises(ValueError, match="'echo' is registered twice"):
        procedures.register("echo", list_invoices)

    assert procedures.find("echo") is echo


def test_an_error_carries_its_code_and_says_what_it_is() -> None:
    error = ErrorCode(404, "no such invoice", "an invoice is asked for that doesn't exist")

    raised = RPCError(error)

    assert raised.error is error
    assert str(raised) == "no such invoice"
