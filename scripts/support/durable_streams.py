"""What subscribers have of durable streams: a plain NATS client, which reads from the log what it misses."""

import asyncio
import json
import time

import nats.js.errors

P = "inferno.v1"


class Stream:
    """What a subscriber has of one request."""

    def __init__(self, request_id):
        self.id = request_id
        self.tokens = []
        self.text = ""
        self.first_record = 0
        self.last_record = 0
        self.owner = None
        self.moves = 0
        self.heard_at = time.monotonic()
        self.pause = 0.0
        self.repeated = 0
        self.skipped = 0
        self.is_over = False
        self.error = None

    def take(self, sequence, event):
        """Takes the next record, in the order of the log."""
        self.first_record = self.first_record or sequence
        self.last_record = sequence
        if claim := event.get("claim"):
            self.moves += self.owner is not None and self.owner != claim["node_id"]
            self.owner = claim["node_id"]
        ids, seq = event["token_ids"], event["seq"]
        if ids:
            now = time.monotonic()
            self.pause, self.heard_at = max(self.pause, now - self.heard_at), now
            self.repeated += seq < len(self.tokens)
            self.skipped += seq > len(self.tokens)
            self.tokens += ids
        self.text += event["text"]
        self.is_over = self.is_over or "usage" in event
        self.error = event.get("error", {}).get("kind", self.error)

    def begin_anew(self):
        """The log was lost, and there is another."""
        self.first_record = self.last_record = 0

    def is_whole(self, tokens):
        return self.is_over and len(self.tokens) == tokens


class Readers:
    """All subscribers: one subscription, and the log for what it misses."""

    def __init__(self, connection, ids):
        self.js = connection.jetstream()
        self.streams = {request_id: Stream(request_id) for request_id in ids}

    async def hear(self, message):
        stream = self.streams.get(message.subject.rsplit(".", 1)[-1])
        headers = message.headers or {}
        if stream is None or "Nats-Sequence" not in headers:
            return
        sequence, previous = int(headers["Nats-Sequence"]), int(headers["Nats-Last-Sequence"])
        if previous == 0 and stream.first_record not in (0, sequence):
            stream.begin_anew()
        if sequence <= stream.last_record:
            return
        if previous != stream.last_record:
            await self.catch_up(stream)
        if sequence > stream.last_record:
            stream.take(sequence, json.loads(message.data))

    async def catch_up(self, stream):
        while not stream.is_over:
            try:
                subject, after = f"{P}.log.{stream.id}", stream.last_record + 1
                record = await self.js.get_msg("inferno_log", seq=after, subject=subject, direct=True, next=True)
            except nats.js.errors.NotFoundError:
                if not await self.is_another_log(stream):
                    return
                stream.begin_anew()
                continue
            if record.seq > stream.last_record:
                stream.take(record.seq, json.loads(record.data))

    async def is_another_log(self, stream):
        """Whether the last record stands before the one that the stream has: what was between is lost."""
        has = stream.last_record  # of this moment: it may have more when the answer comes
        try:
            last = await self.js.get_last_msg("inferno_log", f"{P}.log.{stream.id}")
        except nats.js.errors.NotFoundError:
            return False
        return last.seq < has

    async def catch_up_all(self):
        """For those whose last records were published while nobody was connected."""
        for stream in self.streams.values():
            if not stream.is_over and time.monotonic() - stream.heard_at > 2:
                try:
                    await self.catch_up(stream)
                except Exception:  # NATS is away; it is looked at again
                    return


async def answers_to(connection, requests, timeout_s):
    """What plain requests say, each in one answer: (tokens, text) of each."""

    async def ask(body):
        body["params"]["stream"] = False
        answer = json.loads((await connection.request(f"{P}.generate.demo", json.dumps(body).encode(), timeout=timeout_s)).data)
        return answer["token_ids"], answer["text"]

    return await asyncio.gather(*map(ask, requests))


class Verdict:
    """What subscribers have, beside what is known: a list of (tokens, text)."""

    def __init__(self, readers, answers):
        streams = list(readers.streams.values())
        self.count = len(streams)
        self.lost = sum(max(0, len(tokens) - len(stream.tokens)) for stream, (tokens, _) in zip(streams, answers))
        self.lost += sum(stream.skipped for stream in streams)
        self.duplicated = sum(stream.repeated for stream in streams)
        wrong = [
            (stream, tokens)
            for stream, (tokens, text) in zip(streams, answers)
            if (stream.tokens, stream.text) != (tokens, text)
        ]
        self.wrong = len(wrong)
        self.reordered = sum(sorted(stream.tokens) == sorted(tokens) for stream, tokens in wrong)
        self.moved = sum(stream.moves > 0 for stream in streams)
        self.pause = max(stream.pause for stream in streams)
        self.tokens = len(answers[0][0])

    def is_good(self):
        return not (self.lost or self.duplicated or self.wrong) and self.moved > 0

    def __str__(self):
        return (
            f"{self.count} streams of {self.tokens} tokens: {self.lost} lost, {self.duplicated} duplicated, {self.reordered} reordered, "
            f"{self.wrong} unlike the undisturbed; {self.moved} moved to another node, longest pause {self.pause:.1f} s"
        )
