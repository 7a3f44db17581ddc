"""OpenAI's own Python client, unchanged, against a node.

Goal: whoever has a program for OpenAI's API changes the base URL and nothing else. Method: each call as the client documents it,
checked through the client's types; what the client cannot say is sent through its `extra_body`.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import time
import uuid

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Tell me a short story about a dog."}]


@pytest.fixture(scope="session")
def client(http_url, api_key):
    with openai.OpenAI(
        base_url=f"{http_url}/v1", api_key=api_key, max_retries=0, timeout=60
    ) as client:
        yield client


def test_models_are_listed(client, model):
    models = client.models.list().data
    assert model in [entry.id for entry in models]
    assert all(entry.object == "model" and entry.created > 0 and entry.owned_by for entry in models)
    assert client.models.retrieve(model).id == model


def test_an_unknown_model_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError) as of_list:
        client.models.retrieve("no-such-model")
    assert of_list.value.code == "model_not_found"
    for create in (
        lambda: client.chat.completions.create(model="no-such-model", messages=MESSAGES),
        lambda: client.completions.create(model="no-such-model", prompt="Once"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            create()
        assert error.value.param == "model" and model in error.value.body["message"]


def test_chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=16, temperature=0
    )
    assert answer.object == "chat.completion" and answer.model == model
    assert answer.id.startswith("chatcmpl-") and answer.system_fingerprint
    [choice] = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0
    receipt = answer.model_extra["receipt"]
    assert receipt["node_id"] and receipt["device"] and receipt["attempt"] == 1


def test_chat_stream_gives_the_same_text(client, model):
    arguments = dict(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments)
    stream = client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    *texts, last = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in texts)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in texts]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert last.choices == [] and all(chunk.usage is None for chunk in texts)
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.model_extra["receipt"]["node_id"]


def test_usage_in_every_chunk_grows_to_that_of_the_end(client, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=8, stream=True, stream_options=options
    )
    *usages, last = [chunk.usage for chunk in stream]
    counts = [usage.completion_tokens for usage in usages]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == last.completion_tokens
    assert {usage.prompt_tokens for usage in usages} == {last.prompt_tokens}


def test_a_header_of_any_kind_traces_a_request(client, model):
    for value in ("Root=1-5759e988; Self=a.b", "uuid#12", "x" * 80):
        answer = client.completions.with_raw_response.create(
            model=model, prompt="Once", max_tokens=1, extra_headers={"X-Request-Id": value}
        )
        assert answer.headers["x-request-id"] == value


def test_one_header_may_trace_two_requests_at_once(client, model):
    def run(_):
        return client.completions.create(
            model=model, prompt="Once", max_tokens=64, extra_headers={"X-Request-Id": "one-for-all"}
        ).id

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(run, range(16)))
    assert all(identity.startswith("cmpl-") for identity in ids)


def test_chat_stream_without_usage(client, model):
    chunks = list(
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=True)
    )
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason and chunks[-1].model_extra["receipt"]


def test_stream_helper_of_the_client(client, model):
    text = ""
    # The helper raises when `max_tokens` ended the text.
    with contextlib.suppress(openai.LengthFinishReasonError):
        with client.chat.completions.stream(model=model, messages=MESSAGES, max_tokens=8) as stream:
            for event in stream:
                if event.type == "content.delta":
                    text += event.delta
    assert text


def test_a_conversation_goes_on_with_the_reply_as_it_came(client, model):
    first = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8)
    reply = first.choices[0].message.model_dump()
    messages = [
        {"role": "developer", "content": "You are brief."},
        *MESSAGES,
        reply,
        {
            "role": "user",
            "content": [{"type": "text", "text": "Go "}, {"type": "text", "text": "on."}],
        },
    ]
    assert client.chat.completions.create(model=model, messages=messages, max_tokens=4).choices


def test_completion(client, model):
    answer = client.completions.create(model=model, prompt="Once upon a time", temperature=0)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text and answer.usage.completion_tokens <= 16


def test_completion_stream(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**arguments)
    chunks = list(client.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_prompts_are_one_choice_each(client, model):
    prompts = ["Once upon a time", "The dog", "What is a cat?"]
    arguments = dict(model=model, max_tokens=8, temperature=0)
    alone = [client.completions.create(prompt=prompt, **arguments) for prompt in prompts]
    together = client.completions.create(prompt=prompts, **arguments)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    streamed = ["", "", ""]
    for chunk in client.completions.create(prompt=prompts, stream=True, **arguments):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in together.choices]


def test_prompts_of_token_ids(client, model):
    one = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=2)
    assert one.usage.prompt_tokens == 3
    two = client.completions.create(model=model, prompt=[[5, 6, 7], [8, 9]], max_tokens=2)
    assert two.usage.prompt_tokens == 5 and len(two.choices) == 2


def test_the_same_seed_gives_the_same_text(client, model):
    def text(seed):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=24, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(5)}) > 1


def test_n_choices_differ_and_the_prompt_is_counted_once(client, model):
    arguments = dict(model=model, messages=MESSAGES, max_tokens=16, temperature=1.5, seed=3)
    one = client.chat.completions.create(**arguments)
    four = client.chat.completions.create(n=4, **arguments)
    assert [choice.index for choice in four.choices] == [0, 1, 2, 3]
    texts = [choice.message.content for choice in four.choices]
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) > 1
    assert four.usage.prompt_tokens == one.usage.prompt_tokens
    assert four.usage.completion_tokens > one.usage.completion_tokens

    streamed = ["", "", "", ""]
    for chunk in client.chat.completions.create(n=4, stream=True, **arguments):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_n_choices_for_each_of_several_prompts(client, model):
    prompts = ["Once upon a time", "The fox"]
    arguments = dict(model=model, max_tokens=8, temperature=1, seed=3)
    answer = client.completions.create(prompt=prompts, n=2, **arguments)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = client.completions.create(prompt=prompts[1], n=2, **arguments)
    assert [choice.text for choice in answer.choices[2:]] == [choice.text for choice in alone.choices]


def test_best_of_gives_the_likeliest_and_does_not_stream(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=8, temperature=1.5, seed=1)
    drawn = client.completions.create(n=4, logprobs=0, **arguments).choices

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    best = client.completions.create(best_of=4, **arguments)
    assert [choice.text for choice in best.choices] == [max(drawn, key=mean).text]
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(best_of=4, stream=True, **arguments)
    assert (error.value.code, error.value.param) == ("unsupported", "best_of")


def test_stop_strings_end_the_text_and_are_not_shown(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=48, temperature=0)
    whole = client.completions.create(**arguments).choices[0].text
    assert len(whole) > 8
    stop = whole[5:8]
    cut = client.completions.create(**arguments, stop=[stop, "\x00never"])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**arguments, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text


def test_own_parameters_go_through_extra_body(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_completion_tokens=12,
        extra_body={
            "ignore_eos": True,
            "min_tokens": 12,
            "top_k": 5,
            "min_p": 0.1,
            "priority": 200,
        },
    )
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"


def test_chat_has_log_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content).startswith(answer.choices[0].message.content)
    for entry in content:
        likeliest, second = entry.top_logprobs
        assert (entry.token, entry.logprob) == (likeliest.token, likeliest.logprob)
        assert second.logprob <= entry.logprob <= 0


def test_an_echo_is_the_prompt_with_its_log_probabilities(client, model):
    def ask(**more):
        return client.completions.create(
            model=model, prompt="Once upon a time", temperature=0, echo=True, **more
        ).choices[0]

    whole = ask(max_tokens=2, logprobs=1)
    assert whole.text.startswith("Once upon a time")
    columns = whole.logprobs
    assert columns.token_logprobs[0] is None and columns.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in columns.token_logprobs[1:])
    assert columns.text_offset[0] == 0 and columns.text_offset[-1] < len(whole.text)
    alone = ask(max_tokens=0, logprobs=1)
    count = len(alone.logprobs.tokens)
    assert (alone.text, alone.finish_reason) == ("Once upon a time", "length")
    assert (count, columns.tokens[:count]) == (len(columns.tokens) - 2, alone.logprobs.tokens)
    assert columns.token_logprobs[:count] == alone.logprobs.token_logprobs
    plain = ask(max_tokens=2)
    assert (plain.text, plain.logprobs) == (whole.text, None)


def test_prompt_logprobs_are_those_of_vllm(client, model):
    answer = client.completions.create(
        model=model, prompt=[1, 2, 3], max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    first, second, third = answer.choices[0].model_extra["prompt_logprobs"]
    assert first is None and "2" in second and "3" in third
    for entry in (second, third):
        ranks = sorted(one["rank"] for one in entry.values() if "rank" in one)
        assert ranks == [1, 2] and all(one["logprob"] <= 0 for one in entry.values())


def test_neutral_values_of_openais_parameters_are_taken(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=2,
        n=1,
        frequency_penalty=0,
        presence_penalty=0,
        logprobs=False,
        logit_bias={},
        metadata={"purpose": "test"},
        modalities=["text"],
        parallel_tool_calls=True,
        prompt_cache_key="k",
        response_format={"type": "text"},
        safety_identifier="s",
        service_tier="auto",
        store=False,
        tool_choice="none",
        tools=[],
        user="u",
        verbosity="medium",
    )
    assert answer.choices


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_unsupported_parameters_are_refused_by_name(client, model, param, value):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=MESSAGES, **{param: value})
    assert (error.value.code, error.value.param) == ("unsupported", param)


def test_a_suffix_is_unsupported(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="Once", suffix="x")
    assert (error.value.code, error.value.param) == ("unsupported", "suffix")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"whatever": 1}, "whatever"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"priority": 256}, "priority"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_values_are_refused_by_name(client, model, extra, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_body=extra)
    assert error.value.param.startswith(param), error.value
    assert error.value.body["message"].startswith(f"{error.value.param}: ")
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens"])
def test_what_does_not_fit_is_refused_as_context_length(client, model, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=MESSAGES, **{param: 1_000_000})
    assert (error.value.code, error.value.param) == ("context_length_exceeded", param)
    assert error.value.body["message"].startswith(f"{param}: ")
    # The words by which LangChain and LiteLLM know it.
    [entry] = [entry for entry in client.models.list().data if entry.id == model]
    most = entry.model_extra["max_model_len"]
    assert f"This model's maximum context length is {most} tokens" in str(error.value)
    assert "prompt is too long" in str(error.value)


def test_request_ids_go_there_and_back(client, model):
    request_id = uuid.uuid4().hex
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=2, extra_headers={"X-Request-Id": request_id}
    )
    assert answer.id == f"chatcmpl-{request_id}" and answer._request_id == request_id


def test_a_request_is_cancelled_by_its_id(client, model, http_url, api_key):
    # The demo model fills its context in less time than a second connection may need on a busy machine, so more than one try.
    for _ in range(5):
        stream = client.completions.create(
            model=model,
            prompt="Once",
            max_tokens=1_900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        first = next(iter(stream))
        answer = httpx.delete(
            f"{http_url}/v1/requests/{first.id}",
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=30,
        )
        if answer.status_code == 404:
            continue
        cancelled = answer.json()
        assert cancelled["request_id"] == first.id.removeprefix("cmpl-")
        if cancelled["cancelled"]:
            assert 0 < cancelled["tokens"] < 1_900
            with pytest.raises(openai.APIError, match="cancelled"):
                list(stream)
            return
    pytest.fail("every request had ended before it could be cancelled")


def test_an_unknown_request_is_not_cancelled(http_url, api_key):
    answer = httpx.delete(
        f"{http_url}/v1/requests/nobody", headers={"Authorization": f"Bearer {api_key}"}
    )
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_a_client_that_leaves_frees_its_place(client, model, http_url):
    stream = client.completions.create(
        model=model, prompt="Once", max_tokens=1_900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    for _ in range(200):
        health = httpx.get(f"{http_url}/v1/health").json()
        if health["running"] + health["waiting"] == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"still running: {health}")


def test_many_at_once_all_get_their_own_answer(client, model):
    def run(i):
        answer = client.completions.create(
            model=model, prompt=f"{i} birds", max_tokens=8, temperature=0, stream=i % 2 == 0
        )
        if i % 2 == 0:
            return "".join(chunk.choices[0].text for chunk in answer)
        return answer.choices[0].text

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, range(32)))
    assert together[:4] == [run(i) for i in range(4)]


def test_async_client(http_url, api_key, model):
    async def texts():
        async with openai.AsyncOpenAI(
            base_url=f"{http_url}/v1", api_key=api_key, max_retries=0
        ) as client:

            async def one():
                stream = await client.chat.completions.create(
                    model=model, messages=MESSAGES, max_tokens=8, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(8)))

    assert len(set(asyncio.run(texts()))) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1", b"\xff\xfe", b'{"model":"a","model":"b"}', b"null", b"[]"]
)
def test_malformed_bodies_leave_the_node_healthy(http_url, api_key, body):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
    answer = httpx.post(f"{http_url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert httpx.get(f"{http_url}/health/ready").status_code == 200


def test_health_and_metrics(http_url):
    health = httpx.get(f"{http_url}/v1/health")
    assert health.status_code == 200
    message = health.json()
    assert message["status"] in ("healthy", "degraded")
    assert {check["name"] for check in message["checks"]} == {
        "memory",
        "model",
        "latency",
        "batching",
        "progress",
        "bus",
        "log",
    }
    assert httpx.get(f"{http_url}/health/live").status_code == 200
    metrics = httpx.get(f"{http_url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "inferno_requests_accepted_total" in metrics.text


def test_server_sent_events_are_framed_as_the_standard_has_it(http_url, api_key, model):
    body = {"model": model, "prompt": "Once", "max_tokens": 4, "stream": True}
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx.stream("POST", f"{http_url}/v1/completions", json=body, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    for event in events:
        assert event.startswith("data: ") and "\n" not in event
        assert json.loads(event[6:])["object"] == "text_completion"
