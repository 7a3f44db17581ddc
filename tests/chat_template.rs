//! Goal: chat templates render as Hugging Face renders them.
//! Method: templates of the shapes that models ship, and the fault of every broken file named.

use std::path::Path;

use inferno_node::error::Kind;
use inferno_node::request::ChatMessage;
use inferno_node::tokenizer::{ChatTemplate, MAX_ADDED_BYTES, MAX_INSTRUCTIONS, Tokenizer};
use serde::Deserialize as _;
use serde_json::{Value, json};

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn conversation() -> Vec<ChatMessage> {
    vec![
        message("system", "Be brief."),
        message("user", "  Hi <there> & \"you\" "),
        message("assistant", "Hello."),
        message("user", "你好?"),
    ]
}

const LLAMA_3: &str = r"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\n' }}
{%- endif %}
{{- 'Today Date: ' + date_string + '\n\n' }}
{{- system_message }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
";

#[test]
fn a_template_reads_any_member_of_a_message_and_the_clients_variables() {
    let source = "{% for m in messages %}{{ m.name }}:{{ m.content }}{% if m.tags %}{{ m.tags.x[0] }}{% endif %};{% endfor %}\
        {{ style }}{{ eos_token }}{{ bos_token }}";
    let template = ChatTemplate::new(source, &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let value = |json: Value| inferno_node::request::Value::deserialize(json).expect("a value");
    let named = |name: &str, tags: Value| ChatMessage {
        more: vec![("name".into(), value(json!(name))), ("tags".into(), value(tags))],
        ..message("user", "hi")
    };
    let messages = [named("ann", json!({"x": [7]})), named("bob", json!(null))];
    let variables =
        [("style".into(), value(json!("brief"))), ("eos_token".into(), value(json!("!")))];
    let rendered = template.expect("compiles").render_with(&messages, true, &variables);
    assert_eq!(rendered.as_deref(), Ok("ann:hi7;bob:hi;brief!<s>"));
}

#[test]
fn llama_3_style() {
    let config = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"});
    let template = ChatTemplate::new(LLAMA_3, &config).expect("compiles");
    let turn = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let expected = format!(
        "<|begin_of_text|>{}Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|>{}Hi <there> & \"you\"\
         <|eot_id|>{}Hello.<|eot_id|>{}你好?<|eot_id|>{}",
        turn("system"),
        turn("user"),
        turn("assistant"),
        turn("user"),
        turn("assistant")
    );
    assert_eq!(template.render(&conversation(), true).as_deref(), Ok(expected.as_str()));
    let closed = template.render(&conversation(), false).expect("renders");
    assert_eq!(Some(closed.as_str()), expected.strip_suffix(&turn("assistant")));
}

const CHATML: &str = "{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn chatml_style() {
    let template = ChatTemplate::new(CHATML, &Value::Null).expect("compiles");
    assert_eq!(
        template.render(&[message("user", " x ")], true).as_deref(),
        Ok("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
            <|im_start|>user\n x <|im_end|>\n<|im_start|>assistant\n")
    );
}

const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\
{% endfor %}";

#[test]
fn mistral_style_refuses_in_its_own_words() {
    let config = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>"});
    let template = ChatTemplate::new(MISTRAL, &config).expect("compiles");
    let turns = [message("user", "a"), message("assistant", "b"), message("user", "c")];
    let expected = "<s>[INST] a [/INST]b</s>[INST] c [/INST]";
    assert_eq!(template.render(&turns, true).as_deref(), Ok(expected));
    let error = template.render(&turns[1..], true).expect_err("an assistant first");
    assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("messages")));
    assert!(error.message.ends_with("must alternate user/assistant/user/assistant/..."), "{error}");
}

/// What templates in the wild lean on: Python's methods, namespaces, loop controls, block trimming, generation marks.
#[test]
fn templates_may_use_what_hugging_face_gives_them() {
    let render = |source: &str| {
        let template = ChatTemplate::new(source, &json!({"eos_token": "</s>"})).expect(source);
        template.render(&conversation(), true).expect(source)
    };
    assert_eq!(render("{{ messages[1].content.strip().upper() }}"), "HI <THERE> & \"YOU\"");
    assert_eq!(render("{{ messages[2]['content'].split('l')[0] }}|{{ messages|length }}"), "He|4");
    let namespace = "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}\
        {% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
    assert_eq!(render(namespace), "2");
    let controls = "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}\
        {{ m.role }}{% break %}{% endfor %}";
    assert_eq!(render(controls), "user");
    // Jinja's trim_blocks and lstrip_blocks: a tag's line leaves nothing.
    assert_eq!(render("a\n    {% if true %}\nb\n    {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(render("{% generation %}\nx{%- endgeneration -%}  y"), "xy");
    assert_eq!(render("{{ messages[0]|tojson }}"), r#"{"role": "system", "content": "Be brief."}"#);
    assert_eq!(render("{{ bos_token is defined }} {{ bos_token }}{{ eos_token }}"), "False </s>");
    assert_eq!(render("{{ strftime_now('%Y-%m-%d')|length }}"), "10");
    assert_eq!(render("{{ tools is none }}{{ documents is none }}"), "TrueTrue");
    assert_eq!(
        render("{% macro t(m) %}[{{ m.role }}]{% endmacro %}{{ t(messages[0]) }}"),
        "[system]"
    );
    assert_eq!(render("{{ messages[-1]['content'] }}{{ messages[::-1][0].role }}"), "你好?user");
}

#[test]
fn a_template_that_breaks_is_the_conversations_fault_by_name() {
    let template = ChatTemplate::new("{{ messages[9].content.strip() }}", &Value::Null);
    let error = template.expect("compiles").render(&conversation(), true).expect_err("no ninth");
    assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("messages")));
}

#[test]
fn a_template_that_loops_or_writes_without_end_is_stopped_and_says_at_which_limit() {
    let steps = MAX_INSTRUCTIONS.to_string();
    let bytes = MAX_ADDED_BYTES.to_string();
    let nested = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let recursive =
        "{% macro f() %}{% for a in range(9) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}";
    let written = "{% for a in range(1000) %}{{ messages[0].content * 10000 }}{% endfor %}";
    let repeated = "{{ messages[0].content * 9000000 }}";
    for (source, limit) in [(nested, &steps), (written, &bytes), (repeated, &bytes)] {
        let template = ChatTemplate::new(source, &Value::Null).expect("a template");
        let error = template.render(&[message("user", "x")], true).expect_err("too much");
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("messages")));
        assert!(error.message.contains(limit), "{error}");
    }
    // Nothing is allocated that is not paid for.
    let doubled = "{% set ns = namespace(t='ab') %}{% for a in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
    let listed = "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
    let built = [
        doubled,
        listed,
        "{{ 'a'.ljust(10**12)|length }}",
        "{{ 'a'.center(10**12)|length }}",
        "{{ '%*d' % (10**12, 1) }}",
        "{{ '{:>999999999999}'.format(1) }}",
        "{{ ('a' * 10**12)|length }}",
        "{{ ([1] * 10**12)|length }}",
        "{{ 'a\tb'.expandtabs(10**12)|length }}",
        "{{ 'aaaa'|replace('a', 'b' * 10**7)|replace('b', 'c' * 10**7)|length }}",
        "{{ 'a'|indent(10**12, true)|length }}",
        "{{ [1]|batch(10**12, 0)|list|length }}",
    ];
    for source in built {
        let template = ChatTemplate::new(source, &Value::Null).expect(source);
        let error = template.render(&[message("user", "x")], true).expect_err(source);
        assert!(error.message.contains("more than"), "{source}: {error}");
    }
    let template = ChatTemplate::new(recursive, &Value::Null).expect("a template");
    let error = template.render(&[message("user", "x")], true).expect_err("too deep");
    assert_eq!(error.kind, Kind::Invalid);
}

#[test]
fn ten_thousand_messages_are_far_from_the_limits() {
    let turns = [message("user", "Why?"), message("assistant", "Because.")];
    let conversation: Vec<_> = turns.iter().cycle().take(10_000).cloned().collect();
    let marks = json!({"bos_token": "<s>", "eos_token": "</s>"});
    for source in [LLAMA_3, CHATML, MISTRAL] {
        let template = ChatTemplate::new(source, &marks).expect("a template");
        let text = template.render(&conversation, true).expect("renders");
        assert_eq!(text.matches("Because.").count(), 5_000);
    }
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    let render = |dir: &Path| {
        let template = ChatTemplate::from_dir(dir).expect("readable").expect("there");
        template.render(&[message("user", "x")], false).expect("renders")
    };
    assert!(ChatTemplate::from_dir(dir.path()).expect("nothing to fail").is_none());
    let mut config = json!({"bos_token": "<s>"});
    write("tokenizer_config.json", &config.to_string());
    assert!(ChatTemplate::from_dir(dir.path()).expect("no template").is_none());

    config["chat_template"] = json!("{{ bos_token }}one");
    write("tokenizer_config.json", &config.to_string());
    assert_eq!(render(dir.path()), "<s>one");
    config["chat_template"] = json!([{"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ bos_token }}two"}]);
    write("tokenizer_config.json", &config.to_string());
    assert_eq!(render(dir.path()), "<s>two");
    config["chat_template"] = json!([{"name": "only", "template": "three"}]);
    write("tokenizer_config.json", &config.to_string());
    assert_eq!(render(dir.path()), "three");
    write("chat_template.jinja", "{{ bos_token }}four");
    assert_eq!(render(dir.path()), "<s>four");
}

#[test]
fn a_broken_template_file_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    let two = json!([{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]);
    for broken in [two, json!([]), json!(7), json!("{{"), json!([{"name": "default"}])] {
        write("tokenizer_config.json", &json!({"chat_template": broken}).to_string());
        let error = ChatTemplate::from_dir(dir.path()).expect_err("broken");
        assert!(error.file.ends_with("tokenizer_config.json"), "{error}");
    }
    write("chat_template.jinja", "{% if %}");
    let error = ChatTemplate::from_dir(dir.path()).expect_err("no template");
    assert!(error.file.ends_with("chat_template.jinja"), "{error}");
    write("tokenizer_config.json", "{");
    let error = ChatTemplate::from_dir(dir.path()).expect_err("no JSON");
    assert!(error.file.ends_with("tokenizer_config.json"), "{error}");
}

#[test]
fn the_demo_models_template_gives_its_own_marks() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let template = ChatTemplate::from_dir(&dir).expect("readable").expect("there");
    let tokenizer = Tokenizer::from_dir(&dir).expect("a tokenizer");
    let prompt = template.render(&[message("user", "Hi!")], true).expect("renders");
    let ids = tokenizer.encode(&prompt, false).expect("encodes");
    let marks: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.is_special(id)).collect();
    // Begin, the user's turn and its end, the assistant's turn.
    assert_eq!(marks.len(), 4, "{prompt}");
    assert_eq!(tokenizer.decode(&ids, true).as_deref(), Ok("Hi!"));
}

#[test]
fn a_template_that_cannot_be_rendered_is_found_when_it_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let read = |source: &str| {
        std::fs::write(dir.path().join("chat_template.jinja"), source).expect("writes");
        ChatTemplate::from_dir(dir.path()).expect("readable").expect("there")
    };
    let broken = read("{% for m in messages %}\n{{ m.content|no_such_filter }}{% endfor %}");
    let fault = broken.fault().expect("no conversation can be rendered");
    assert!(fault.contains("chat_template.jinja: line 2: No filter named"), "{fault}");
    let error = broken.render(&conversation(), true).expect_err("nor this one");
    assert_eq!((error.kind, error.param.as_deref()), (Kind::Unsupported, None));
    assert!(error.message.contains("the checkpoint's"), "{error}");
    // A refusal in its own words is none, nor is one shape that it does not take.
    for source in
        [MISTRAL, LLAMA_3, "{{ raise_exception('never') }}", "{{ messages[1].content.strip() }}"]
    {
        assert_eq!(read(source).fault(), None, "{source}");
    }
}

#[test]
fn line_ends_of_a_template_are_unix_ones_and_its_file_is_a_regular_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("chat_template.jinja");
    std::fs::write(&file, "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n").expect("writes");
    let template = ChatTemplate::from_dir(dir.path()).expect("readable").expect("there");
    assert_eq!(template.render(&conversation(), true).as_deref(), Ok("a\nb\n"));
    std::fs::remove_file(&file).expect("removes");
    std::fs::create_dir(&file).expect("makes");
    let error = ChatTemplate::from_dir(dir.path()).expect_err("a directory");
    assert!(error.file.ends_with("chat_template.jinja"), "{error}");
}

#[test]
fn expressions_without_end_are_refused_and_cost_no_stack() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let long = format!("{{{{ 1{} }}}}", " + 1".repeat(100_000));
    let filtered = format!("{{{{ 'a'{} }}}}", "|trim".repeat(100_000));
    let nots = format!("{{{{ {}1 }}}}", "not ".repeat(100_000));
    let ifs = format!("{}{}", "{% if 1 %}".repeat(100_000), "{% endif %}".repeat(100_000));
    for source in [deep, long, filtered, nots, ifs] {
        let error = ChatTemplate::new(&source, &Value::Null).expect_err("too deep");
        assert!(error.contains("more than"), "{error}");
    }
    let nested = "{% set ns = namespace(t=[]) %}{% for a in range(1000) %}{% set ns.t = [ns.t] %}{% endfor %}";
    let template = ChatTemplate::new(nested, &Value::Null).expect("a template");
    assert!(template.render(&conversation(), true).is_err());
}
