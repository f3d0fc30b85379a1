"""One run on the cards of a cluster: who does what, what comes back, what to do when a card or a machine is gone.

Nothing depends on the order: any card may make any part again, and it is the same.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loraport.batches.checks import AT_ONCE
from loraport.errors import InputError, UnreadableError
from loraport.estimates.card_memory import bytes_kept
from loraport.estimates.layer_cost import CARD, PROCESSOR, layer_seconds
from loraport.objects.store import ObjectStore
from loraport.workers.fingerprint import PARTS
from loraport.workers.gather import UnwritableJobError
from loraport.workers.models import OpenModels, OpenWave
from loraport.workers.on_ray.calls import Call, Member, OpenedWave
from loraport.workers.on_ray.card import TRIES, CardFacts, CardOrders, MadePart, files_of_lora
from loraport.workers.on_ray.cluster import CardDiedError, Cluster
from loraport.workers.on_ray.owners import Owners
from loraport.workers.plan import RunPlan
from loraport.workers.records import Records
from loraport.workers.work import Worker

AHEAD = 2
"""Calls that a card has at a time: the next one lies there when it has done one."""
LATE = 60.0
"""Seconds for which cards that are not ready are waited for when the first one is."""
SILENT = 240.0
"""Seconds for which a card that fell silent is waited for while its machine is there: it loads PyTorch anew."""
LOOK = 2.0
"""Seconds between looks at which machines are there."""
Hear = Callable[[str, dict[str, Any]], None]


class ClusterRun:
    """One run on the cards of a cluster."""

    def __init__(self, cluster: Cluster, store: ObjectStore, plan: RunPlan, hear: Hear, orders: CardOrders) -> None:
        self.cluster, self.store, self.plan, self.hear, self.orders = cluster, store, plan, hear, orders
        self.models = OpenModels(plan, device="cpu")
        self.now = -1
        self.worker = Worker(store, plan, self.models, tell=lambda event, **facts: self.tell(event, facts))
        self.records = Records(store)
        self.members: dict[int, Member] = {}
        self.started: list[Any] = []
        self.calls: dict[Any, tuple[int, Call]] = {}
        self.gathers: dict[Any, tuple[int, int]] = {}
        self.questions: dict[Any, int] = {}
        self.waves: dict[int, OpenedWave] = {}
        self.to_open = deque(wave.number for wave in plan.waves)
        self.present: set[str] = set()
        self.looked = time.monotonic()

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        self.hear(event, {"worker": self.now, **facts})

    # cards come and go

    def start(self) -> None:
        """Start the cards, and wait for those that come. Raises InputError where none does."""
        self.started = self.cluster.cards(self.orders, self.plan.machine.threads)
        asked = {self.cluster.facts(actor): actor for actor in self.started}
        reasons, until = [], math.inf
        while asked and time.monotonic() < until:
            for reference in self.cluster.next_done(list(asked), LOOK):
                actor = asked.pop(reference)
                try:
                    facts = self.cluster.result(reference)
                except (InputError, CardDiedError) as error:
                    reasons.append(str(error))
                    continue
                self.now = len(self.members)
                self.members[self.now] = Member(actor, facts)
                self.tell(
                    "began", {"who": f"{facts.host}-{facts.process}", "process": facts.process, "node": facts.node}
                )
                until = min(until, time.monotonic() + LATE)
        if not self.members:
            raise InputError(reasons[0] if reasons else "the Ray cluster has no card and no free core")
        for actor in asked.values():
            self.cluster.stop(actor)
        if asked or reasons:
            why = f", {reasons[0]}" if reasons else ""
            self.tell("note", {"text": f"{len(asked) + len(reasons)} of {len(self.started)} cards do not work{why}"})
        self.owners = Owners({number: one.facts.resident_bytes for number, one in self.members.items()})

    def end(self) -> None:
        """Let go of the cards."""
        for actor in self.started:
            self.cluster.stop(actor)

    def _look(self) -> None:
        """Look which machines are gone, and give what their cards had to the others."""
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked, living = time.monotonic(), self.cluster.living()
        for number in [number for number, one in self.members.items() if one.facts.node not in living]:
            self._lose(number, self._is_gone(self.members[number]))

    def _lose(self, number: int, reason: str) -> None:
        """Give the layers and the calls of a card to the others. Raises InputError where there is no other."""
        gone = self.members.pop(number)
        self.cluster.stop(gone.actor)
        self.now = number
        self.tell("died", {"reason": reason})
        self.owners.lose(number)
        calls = [*gone.todo, *gone.doubtful]
        under_way = [reference for reference, (member, _) in self.calls.items() if member == number]
        calls += [self.calls.pop(reference)[1] for reference in under_way]
        for reference in [reference for reference, member in self.questions.items() if member == number]:
            del self.questions[reference]
        outputs = [reference for reference, (member, _) in self.gathers.items() if member == number]
        jobs = [self.gathers.pop(reference)[1] for reference in outputs]
        if not self.members:
            raise InputError(f"no card is left: {reason}; start again: what is done is kept")
        for wave in self.waves.values():
            self._give(wave.opened)
        for call in calls:
            self._queue(call)
        for job in jobs:
            self._gather(job)

    # layers and calls

    def _give(self, wave: OpenWave) -> None:
        """Give the layers of a wave's LoRAs to cards, as far as they have none."""
        first = next(iter(wave.jobs.values()), None)
        if first is None:
            return
        target, recipe = first.inputs.target, first.inputs.config.recipe
        device = CARD if self.plan.machine.device.startswith("cuda") else PROCESSOR
        shapes = {name: target.shape(f"{name}.weight") for name in wave.names}
        sides = {name: (max(flat), min(flat)) for name, shape in shapes.items() if (flat := _flat(shape))}
        costs = {name: layer_seconds(shape, recipe, device) for name, shape in sides.items()}
        self.owners.give(
            {name: cost.shared + AT_ONCE * cost.own for name, cost in costs.items()},
            {name: bytes_kept(shape) for name, shape in sides.items()},
        )

    def _open(self) -> None:
        """Open the next wave that has something to do, and queue its calls."""
        while self.to_open:
            number = self.to_open.popleft()
            if all(job in self.worker.ended for job in self.plan.waves[number].jobs):
                continue
            self.now = -1
            opened = self.worker.open(number)
            self._give(opened)
            missing = {
                job.number: {name for name in job.layers if job.parts[name] not in self.present}
                for job in opened.jobs.values()
                if job.number not in self.worker.ended
            }
            there = {
                number: 1 - len(layers) / (len(opened.jobs[number].layers) or 1) for number, layers in missing.items()
            }
            self.tell("opened", {"wave": number, "there": there})
            wave = self.waves[number] = OpenedWave(opened, missing, self._references(opened))
            # There and back: a card that cannot keep its share begins with what it had last.
            by_layer: dict[str, list[int]] = {}
            for job, layers in missing.items():
                for layer in layers:
                    by_layer.setdefault(layer, []).append(job)
            order = sorted(by_layer, key=lambda layer: (-self._size(wave, layer), layer), reverse=number % 2 == 1)
            for layer in order:
                self._queue(Call(number, layer, tuple(sorted(by_layer[layer]))))
            for job in [job for job, layers in missing.items() if not layers]:
                self._gather(job)
            if wave.left:
                return
            self._close(number)

    @staticmethod
    def _size(wave: OpenedWave, layer: str) -> int:
        return math.prod(wave.opened.having(layer)[0].layers[layer].shape)

    def _references(self, wave: OpenWave) -> dict[str, Any]:
        """Put those LoRAs of a wave where all get them that some machine does not have."""
        wanted = {place for one in self.members.values() for place in one.facts.missing}
        places = {self.plan.jobs[job].config.lora for job in wave.jobs}
        return {place: self.cluster.share(files_of_lora(place)) for place in sorted(places & wanted)}

    def _queue(self, call: Call) -> None:
        self.members[self.owners.of(call.layer)].todo.append(call)

    def _feed(self) -> None:
        """Give every card something to do; open another wave where one runs out of it, two at most."""
        if len(self.waves) < 2 and self.to_open and any(not one.todo for one in self.members.values()):
            self._open()
        for number, one in self.members.items():
            while one.silent_since is None and one.todo and one.calls < self._ahead(number, one):
                call = one.todo.popleft()
                jobs = tuple(job for job in call.jobs if job not in self.worker.ended)
                if not jobs:
                    continue
                references = self.waves[call.wave].references
                reference = one.actor.make.remote(call.wave, call.layer, jobs, references)
                self.calls[reference] = number, Call(call.wave, call.layer, jobs, call.deaths)
                one.calls += 1

    def _ahead(self, number: int, one: Member) -> int:
        """Return how many calls a card may have: after a death one, so that it is known which kills."""
        doubtful = one.todo[0].deaths or any(call.deaths for member, call in self.calls.values() if member == number)
        return 1 if doubtful else AHEAD

    # results

    def work(self) -> bool:
        """Work until all outputs are made or put aside."""
        self.worker.look()
        self.present = set(self.store.names(PARTS))
        while True:
            self._feed()
            waiting = [*self.calls, *self.gathers, *self.questions]
            if not waiting:
                if not self.to_open and not any(one.todo for one in self.members.values()):
                    break
                continue
            for reference in self.cluster.next_done(waiting, LOOK):
                if reference in self.calls:
                    self._took(*self.calls.pop(reference), reference)
                elif reference in self.gathers:
                    self._gathered(*self.gathers.pop(reference), reference)
                elif reference in self.questions:  # and not one that went with its card
                    self._answered(self.questions.pop(reference), reference)
            self._look()
        self.worker.look()
        return len(self.worker.ended) == len(self.plan.jobs)

    def _took(self, number: int, call: Call, reference: Any) -> None:
        """Take the parts of a call; where the card died with it, find out which job killed it."""
        self.now = number
        self.members[number].calls -= 1
        try:
            parts: Iterable[MadePart] = self.cluster.result(reference)
        except CardDiedError:
            self._silent(number, call)
            return
        except UnreadableError as error:  # the models: other machines may reach them
            self.members[number].todo.appendleft(call)
            self._lose(number, str(error))
            return
        for part in parts:
            self._keep(call, part)

    def _silent(self, number: int, call: Call | None) -> None:
        """Ask a card that died, or cannot be reached, what it is now."""
        member = self.members[number]
        if call is not None:
            member.doubtful.append(call)
        if member.silent_since is None:
            member.silent_since = time.monotonic()
            self.questions[self.cluster.facts(member.actor)] = number

    def _answered(self, number: int, reference: Any) -> None:
        """Go on with a card that answers; without one whose machine is gone, or that is silent for too long."""
        self.now, member = number, self.members[number]
        try:
            facts: CardFacts = self.cluster.result(reference)
        except (CardDiedError, InputError) as error:
            gone = member.facts.node not in self.cluster.living()
            if gone or time.monotonic() - (member.silent_since or 0.0) > SILENT:
                self._lose(number, self._is_gone(member) if gone else f"{member.facts.host}: {error}")
                return
            time.sleep(LOOK / 4)
            self.questions[self.cluster.facts(member.actor)] = number
            return
        same_machine = facts.node == member.facts.node
        member.facts, member.silent_since = facts, None
        calls, member.doubtful = member.doubtful, []
        if calls:
            self.tell("died", {"reason": f"the process of its card on {facts.host} ended, and was started again"})
        for call in calls:
            self._again(member, call, call.deaths + same_machine)

    def _again(self, member: Member, call: Call, deaths: int) -> None:
        """Repeat a call in which a process died: job by job, so that it is found out which of them kills."""
        if all(job in self.worker.ended for job in call.jobs):
            return
        if len(call.jobs) == 1 and deaths >= TRIES:
            self._put_aside(
                call, call.jobs[0], f"cards died {deaths} times while they had it in work, at layer {call.layer}: too "
                "little memory, or a fault of a library; try it alone with `loraport transfer`", deaths,
            )  # fmt: skip
            return
        for job in reversed(call.jobs):
            member.todo.appendleft(Call(call.wave, call.layer, (job,), deaths))

    @staticmethod
    def _is_gone(member: Member) -> str:
        return f"the machine {member.facts.host} is gone, and its layers go to the others"

    def _keep(self, call: Call, part: MadePart) -> None:
        """Write a part, unless the card has, and gather its job where it was the last one."""
        wave = self.waves[call.wave]
        if part.job in self.worker.ended or part.job not in wave.left:
            return
        if part.reason:
            self._put_aside(call, part.job, part.reason, part.tries)
            return
        job = wave.opened.jobs[part.job]
        if part.name != job.parts[call.layer]:
            raise UnreadableError(
                f"on the machine {self.members[self.now].facts.host} the models or {job.inputs.config.lora} are "
                "others than here: copy the same files to all machines, or name a place that all reach"
            )
        if part.facts is not None:
            self.records.check_layer(job.identities[call.layer], call.layer, part.facts)
        if part.content is not None:
            self.store.write(part.name, part.content)
        self.present.add(part.name)
        self.tell("part", {
            "job": part.job, "layer": call.layer, "bytes": part.size, "seconds": part.seconds,
            "share": job.seconds[call.layer] / (sum(job.seconds.values()) or 1.0),
        })  # fmt: skip
        wave.left[part.job].discard(call.layer)
        if not wave.left[part.job]:
            self._gather(part.job)

    def _put_aside(self, call: Call, job: int, reason: str, tries: int) -> None:
        self.worker.put_aside(job, reason, tries)
        self.waves[call.wave].left.pop(job, None)
        self._close(call.wave)

    def _gather(self, job: int) -> None:
        """Write an output: here into a folder, else on a card, which writes as fast as its machine can."""
        if self.orders.url is None:
            self._ended(job, self.worker.gather(job) is not None)
            return
        number = min(self.members, key=lambda number: (self.members[number].calls, number))
        references = self.waves[self.plan.wave_of[job]].references
        self.gathers[self.members[number].actor.gather.remote(job, references)] = number, job

    def _gathered(self, number: int, job: int, reference: Any) -> None:
        self.now = number
        try:
            end = self.cluster.result(reference)
        except CardDiedError:
            self._silent(number, None)
            self._ended(job, self.worker.gather(job) is not None)
            return
        except UnwritableJobError as error:
            self.worker.put_aside(job, str(error))
            self._ended(job, True)
            return
        if end is not None:
            self.worker.ended.add(job)
            self.tell("made", {"job": job, "row": end.row.as_json(), "lost": end.lost, "notes": list(end.notes)})
        self._ended(job, end is not None)

    def _ended(self, job: int, over: bool) -> None:
        """Let go of a job, or make again what was found damaged."""
        number = self.plan.wave_of[job]
        wave = self.waves[number]
        if over or job in self.worker.ended:
            wave.left.pop(job, None)
            self._close(number)
            return
        self.present = set(self.store.names(PARTS))
        opened = wave.opened.jobs[job]
        wave.left[job] = {name for name in opened.layers if opened.parts[name] not in self.present}
        for layer in sorted(wave.left[job]):
            self._queue(Call(number, layer, (job,)))

    def _close(self, number: int) -> None:
        """Let go of a wave that is over, with its LoRAs."""
        if number in self.waves and not self.waves[number].left:
            del self.waves[number]


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
