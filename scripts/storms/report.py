"""The table of a storm for people, and its figures for machines."""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.storms.storm import BOUND_FACTOR, Blow, Outcome

LAG_AIM = 0.1
_ON_TIME = 0.1  # seconds on either side of a slot; a client's timer and the network are in it

_Line = tuple[str, str, str]


def table(outcome: Outcome) -> str:
    """One line a fact: what it is, what was found, and what of it was promised."""
    lines = list(_lines(outcome))
    name_width = max(len(name) for name, _, _ in lines)
    found_width = max(len(found) for _, found, _ in lines)
    text = [
        f"{name:<{name_width}}  {found:<{found_width}}  {verdict}".rstrip()
        for name, found, verdict in lines
    ]
    faults = [*outcome.audited.faults, *outcome.returned.stuck]
    return "\n".join([_heading(outcome), "", *text, *(f"! {fault}" for fault in faults)])


def _heading(outcome: Outcome) -> str:
    storm = outcome.storm
    how = "kill -9" if storm.blow is Blow.KILL else "SIGTERM"
    stock = storm.clients - storm.sessions
    kinds = f"{storm.sessions:,} with sessions" + (f", {stock:,} stock" if stock else "")
    return (
        f"{how} under {storm.clients:,} clients ({kinds}) in {storm.rooms:,} rooms, "
        f"{storm.publish_rate:g} publishes/s; started again at once"
    )


def _lines(outcome: Outcome) -> Iterator[_Line]:
    storm, returned, audited = outcome.storm, outcome.returned, outcome.audited
    back = storm.clients - returned.missing
    yield (
        "lost",
        (
            f"{audited.lost_publishes:,} of {audited.acknowledged:,} acknowledged publishes, "
            f"{audited.lost_deliveries:,} of {audited.deliveries:,} deliveries"
        ),
        _verdict(audited.lost == 0, "none"),
    )
    yield (
        "doubled",
        f"{audited.doubled_publishes:,} publishes, {audited.doubled_deliveries:,} deliveries",
        _verdict(audited.doubled == 0, "none"),
    )
    if audited.wrong_deliveries:
        yield "other than in the log", f"{audited.wrong_deliveries:,} deliveries", "MISSED"
    kinds = [f"{returned.resumed:,} resumed", f"{returned.recovered:,} recovered"]
    if returned.unrecovered:
        kinds.append(f"{returned.unrecovered:,} could not recover")
    yield (
        "back",
        f"{back:,} of {storm.clients:,}: {', '.join(kinds)}",
        _verdict(not returned.missing, "all"),
    )
    yield "server away", f"{outcome.ready - outcome.ended:.2f} s", ""
    yield (
        "time to recover",
        f"{outcome.recovery:.2f} s from {_since_when(outcome)} to the last client back",
        _verdict(
            outcome.recovery <= outcome.bound,
            f"≤ {outcome.bound:.2f} s = {_reason(outcome)}",
        ),
    )
    yield "capacity", f"{outcome.capacity:,.0f} clients/s, as the server measured it", ""
    yield (
        "loop lag",
        f"p99 {_ms(outcome.lag_p99)} of {outcome.lag_count} looks",
        _verdict(outcome.lag_p99 < LAG_AIM, f"< {_ms(LAG_AIM)}"),
    )
    yield (
        "acknowledged",
        (
            f"p50 {_ms(returned.acknowledged_p50)}, p99 {_ms(returned.acknowledged_p99)} "
            "for those who are there"
        ),
        "",
    )
    given_up = len(returned.dials) - len(returned.returns) - len(returned.refusals)
    yield (
        "attempts",
        (
            f"{len(returned.dials):,}: {len(returned.returns):,} received, "
            f"{len(returned.refusals):,} sent away, {max(given_up, 0):,} given up"
        ),
        "",
    )
    yield "slots, by the server", _counts(outcome.slots), ""
    yield "slots, by the clients", _slots_of(returned.slots_told, returned.slots_lateness), ""
    yield "attempts to resume", _counts(outcome.resumes), ""
    if storm.blow is Blow.TERM:
        moves = returned.joins + returned.leaves
        yield (
            "presence of sessions",
            f"{outcome.presence_changed:,} changes, {moves:,} joins and leaves seen",
            _verdict(not outcome.presence_changed and not moves, "none"),
        )
    yield (
        "busy",
        (
            f"server {outcome.server_busy:.0%}, load {returned.load_busy:.0%} of a core each, "
            f"others {outcome.others_busy:.0%} of the machine"
        ),
        "",
    )


def _reason(outcome: Outcome) -> str:
    if outcome.bound == outcome.storm.backoff_max:
        return "the clients' own longest delay"
    return f"{BOUND_FACTOR} x {outcome.storm.clients:,} / capacity"


def _since_when(outcome: Outcome) -> str:
    return "ready" if outcome.door_open == outcome.ready else "the first slot"


def _verdict(met: bool, aim: str) -> str:
    return f"{aim}  {'met' if met else 'MISSED'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _counts(counts: dict[str, int]) -> str:
    named = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join(named) or "none"


def _slots_of(told: int, lateness: Sequence[float]) -> str:
    if not told:
        return "none told"
    early = sum(late < -_ON_TIME for late in lateness)
    late = sum(late > _ON_TIME for late in lateness)
    return (
        f"{told:,} told, {len(lateness) - early - late:,} on time, {early:,} early, {late:,} late"
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, in seconds and clients per second."""
    storm, returned, audited = outcome.storm, outcome.returned, outcome.audited
    return {
        "clients": storm.clients,
        "sessions": storm.sessions,
        "signal": storm.blow.value,
        "publish_rate": storm.publish_rate,
        "rooms": storm.rooms,
        "clean": outcome.is_clean,
        "lost": audited.lost,
        "doubled": audited.doubled,
        "published": audited.published,
        "acknowledged": audited.acknowledged,
        "logged": audited.logged,
        "deliveries": audited.deliveries,
        "missing": returned.missing,
        "dials": len(returned.dials),
        "refusals": len(returned.refusals),
        "resumed": returned.resumed,
        "recovered": returned.recovered,
        "unrecovered": returned.unrecovered,
        "gathered": outcome.gathered,
        "ended": outcome.ended,
        "ready": outcome.ready,
        "recovery": outcome.recovery,
        "capacity": outcome.capacity,
        "bound": outcome.bound,
        "lag_p99": outcome.lag_p99,
        "acknowledged_p50": returned.acknowledged_p50,
        "acknowledged_p99": returned.acknowledged_p99,
        "slots": outcome.slots,
        "resumes": outcome.resumes,
        "presence_changed": outcome.presence_changed,
        "joins": returned.joins,
        "leaves": returned.leaves,
        "server_busy": outcome.server_busy,
        "load_busy": returned.load_busy,
        "others_busy": outcome.others_busy,
        "faults": [*audited.faults, *returned.stuck],
    }
