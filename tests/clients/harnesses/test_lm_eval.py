"""lm-eval, unchanged, against a node: its model `local-completions` scores multiple choice by the log probabilities of an echo, and
generates; `local-chat-completions` generates, too.

Goal: whoever evaluates models over OpenAI's API evaluates ours. Method: tasks of our own (nothing is downloaded) whose right answers
are what the demo model is sure of; then each answer's score against that of the same tokens asked for one by one.
"""

import json
import os

import httpx
import pytest

# Before the first import of Hugging Face's libraries: nothing is looked for outside.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false"}

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

TASK = """
task: inferno_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""

DOCS = [
    {"question": "Once upon a", "choices": ["time", "seven", "green"], "answer": 0},
    {"question": "When the sky turned", "choices": ["of", "black", "did"], "answer": 1},
    {"question": "Once upon a time, there", "choices": ["spoon and", "blue", "was a"], "answer": 2},
    {"question": "She hid under her", "choices": ["blanket", "was the", "because of"], "answer": 0},
]


def evaluate(http_url, model, tokenizer, folder, **more):
    data = folder / "choices.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "choices.yaml").write_text(TASK.format(data=data))
    args = {
        "model": model,
        "base_url": f"{http_url}/v1/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 1,
        "max_retries": 1,
        **more,
    }
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=args,
        tasks=["inferno_choices"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


def scores(result):
    """(log probability, greedy) of every answer, in the order of the task."""
    samples = sorted(result["samples"]["inferno_choices"], key=lambda sample: sample["doc_id"])
    return [tuple(answer) for sample in samples for answer in sample["filtered_resps"]]


@pytest.fixture(scope="module")
def result(http_url, api_key, model, tokenizer, tmp_path_factory):
    os.environ["OPENAI_API_KEY"] = api_key
    return evaluate(http_url, model, tokenizer, tmp_path_factory.mktemp("task"))


def test_multiple_choice_runs_and_the_model_knows_its_stories(result):
    accuracy = result["results"]["inferno_choices"]["acc,none"]
    assert len(scores(result)) == sum(len(doc["choices"]) for doc in DOCS)
    assert all(logprob < 0 for logprob, _ in scores(result))
    assert accuracy == 1, scores(result)


def test_batches_and_concurrent_requests_score_the_same(
    result, http_url, model, tokenizer, tmp_path
):
    batched = evaluate(http_url, model, tokenizer, tmp_path, batch_size=8, num_concurrent=2)
    assert scores(batched) == scores(result)


def test_a_score_is_the_sum_over_its_tokens_asked_for_one_by_one(
    result, http_url, api_key, model, tokenizer
):
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).encode
    doc, choice = DOCS[0], 1
    context = encode(doc["question"], add_special_tokens=False)
    whole = encode(f"{doc['question']} {doc['choices'][choice]}", add_special_tokens=False)
    assert whole[: len(context)] == context
    total = 0.0
    for at in range(len(context), len(whole)):
        body = {
            "model": model,
            "prompt": whole[:at],
            "max_tokens": 1,
            "logprobs": 0,
            "allowed_token_ids": [whole[at]],
        }
        headers = {"Authorization": f"Bearer {api_key}"}
        answer = httpx.post(f"{http_url}/v1/completions", json=body, headers=headers, timeout=60)
        [logprob] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
        total += logprob
    assert scores(result)[choice][0] == pytest.approx(total, abs=1e-4)


GENERATE = """
task: inferno_story
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs:
  until: ["."]
  do_sample: false
  max_gen_toks: 24
metric_list:
  - metric: exact_match
"""

QUESTIONS = ["Once upon a time", "Once upon a time, there", "When the sky turned"]


@pytest.mark.parametrize("kind", ["local-completions", "local-chat-completions"])
def test_text_is_generated_up_to_a_stop_string(http_url, api_key, model, tokenizer, tmp_path, kind):
    os.environ["OPENAI_API_KEY"] = api_key
    data = tmp_path / "story.jsonl"
    docs = ({"question": question, "answer": ""} for question in QUESTIONS)
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "story.yaml").write_text(GENERATE.format(data=data))
    chat = kind == "local-chat-completions"
    endpoint = "chat/completions" if chat else "completions"
    result = lm_eval.simple_evaluate(
        model=kind,
        model_args={
            "model": model,
            "base_url": f"{http_url}/v1/{endpoint}",
            "tokenizer": tokenizer,
            "tokenizer_backend": "huggingface",
            "num_concurrent": 2,
            "max_retries": 1,
        },
        tasks=["inferno_story"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    texts = [sample["filtered_resps"][0] for sample in result["samples"]["inferno_story"]]
    assert len(texts) == len(QUESTIONS) and all(texts) and not any("." in text for text in texts)
