"""Streams one chat completion over HTTP (server-sent events) to the terminal, then prints TTFT and tokens/s."""

import json
import sys
import time
import urllib.request


def main(base, model, question):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    started = time.monotonic()
    first = last = None
    usage = None
    print(f"> {question}")
    with urllib.request.urlopen(request, timeout=60) as reply:
        for line in reply:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise SystemExit(f"failed: {chunk['error']['message']}")
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text = choice["delta"].get("content")
                if text:
                    last = time.monotonic()
                    first = first or last
                    print(text, end="", flush=True)
    print()
    if first is None or usage is None:
        raise SystemExit("no token came")
    tokens = usage["completion_tokens"]
    rate = (tokens - 1) / (last - first) if last > first else 0.0
    print(f"[{tokens} tokens, TTFT {1e3 * (first - started):.1f} ms, {rate:.0f} tokens/s]")


main(*sys.argv[1:])
