//! Goal: what a template shows is what Jinja2 shows of Python's values. Method: tables of expressions with what Python prints; the client
//! suite holds hundreds more against `transformers` itself.

use super::clock::strftime;
use super::*;

const LIMITS: RenderLimits =
    RenderLimits { instructions: 100_000, built_bytes: 1 << 20, output_bytes: 1 << 16 };

fn render(source: &str) -> std::result::Result<String, RenderError> {
    let items = [3, 1, 2].map(PyValue::Int).to_vec();
    let pairs = vec![("b".to_owned(), PyValue::Int(1)), ("a".to_owned(), PyValue::Float(2.5))];
    let variables = vec![
        ("s".into(), PyValue::from("Hello wOrld")),
        ("l".into(), PyValue::given_list(items)),
        ("d".into(), PyValue::given_dict(pairs)),
    ];
    let template = Template::new(source).map_err(RenderError::failed)?;
    template.render(variables, LIMITS, moment(1_700_000_000))
}

fn moment(unix_seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_seconds).expect("a year of four digits")
}

fn shows(cases: &[(&str, &str)]) {
    for (expression, expected) in cases {
        let shown = render(&format!("{{{{ {expression} }}}}"));
        assert_eq!(shown.as_deref(), Ok(*expected), "{expression}");
    }
}

fn fails(cases: &[(&str, &str)]) {
    for (source, part) in cases {
        let error = render(source).expect_err(source).to_string();
        assert!(error.contains(part), "{source}: {error}");
    }
}

#[test]
fn values_print_as_python_prints_them() {
    shows(&[
        (
            "['a', 1, 2.0, none, true, (1,), (), {'k': [1]}]",
            "['a', 1, 2.0, None, True, (1,), (), {'k': [1]}]",
        ),
        (
            "[\"it's\", 'a\"b', 'tab\\t', 'é', '\\u200b']",
            "[\"it's\", 'a\"b', 'tab\\t', 'é', '\\u200b']",
        ),
        ("d.items()", "dict_items([('b', 1), ('a', 2.5)])"),
        (
            "[1e20, 1e16, 1e15, 1e-7, 0.0001, -0.0, 1/3]",
            "[1e+20, 1e+16, 1000000000000000.0, 1e-07, 0.0001, -0.0, 0.3333333333333333]",
        ),
        ("range(1, 9, 3)", "range(1, 9, 3)"),
        ("'é'.encode()", "b'\\xc3\\xa9'"),
        ("nothing", ""),
        ("1 ~ none ~ [s]", "1None['Hello wOrld']"),
    ]);
}

#[test]
fn operators_are_pythons() {
    shows(&[
        (
            "[7 % -3, -7 % 3, -7 // 2, 7.5 % -2, 2 ** -1, -2 ** 2, 7 / 2]",
            "[-2, 2, -4, -0.5, 0.5, 4, 3.5]",
        ),
        (
            "'%s=%r|%5.2f|%-4d|%05d|%x' % ('a', 'b', 3.14159, 4, 42, 255)",
            "a='b'| 3.14|4   |00042|ff",
        ),
        ("'%(a)s' % {'a': 1}", "1"),
        (
            "[1 < 2 < 3, 1 == 1.0, true == 1, [1, 2] < [1, 3], 'b' in d, 9 not in l]",
            "[True, True, True, True, True, True]",
        ),
        (
            "[l[-1], l[1:], l[::-1], s[1:4], s[::-2], l[9] is defined]",
            "[2, [1, 2], [2, 1, 3], 'ell', 'drwolH', False]",
        ),
        ("{1: 'a', 1.0: 'b', true: 'c'}", "{1: 'c'}"),
    ]);
    fails(&[
        ("{{ 'a' + 1 }}", "can only concatenate str (not \"int\") to str"),
        ("{{ 1 < 'a' }}", "'<' not supported between instances of 'int' and 'str'"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{{ 2 ** 200 }}", "127 bits"),
        ("{{ nothing.x }}", "'nothing' is undefined"),
        ("{{ '%d' % 'x' }}", "a real number is required, not str"),
        ("{{ {[1]: 2} }}", "unhashable type: 'list'"),
    ]);
}

#[test]
fn methods_are_pythons_and_none_changes_a_value() {
    shows(&[
        ("s.rsplit('l', 1)", "['Hello wOr', 'd']"),
        ("' a b c '.split(none, 1) + ' a b c '.rsplit(none, 1)", "['a', 'b c ', ' a b', 'c']"),
        (
            "[s.partition(' '), s.rpartition('x')]",
            "[('Hello', ' ', 'wOrld'), ('', '', 'Hello wOrld')]",
        ),
        (
            "[s.removeprefix('He'), s.removesuffix('ld'), s.swapcase(), s.title()]",
            "['llo wOrld', 'Hello wOr', 'hELLO WoRLD', 'Hello World']",
        ),
        (
            "['-42'.zfill(5), 'a'.ljust(3) ~ '|', 'a'.rjust(3, '.'), 'ab'.center(5, '*')]",
            "['-0042', 'a  |', '..a', '**ab*']",
        ),
        ("'{0} {1[b]} {x!r:>5}|{2:,.2f}'.format(1, {'b': 2}, 1234.5, x='q')", "1 2   'q'|1,234.50"),
        (
            "[s.find('o'), s.rfind('o'), s.count('l'), 'a\\nb\\n'.splitlines()]",
            "[4, 4, 3, ['a', 'b']]",
        ),
        ("[d.get('x'), d.get('x', 5), d.keys()|list, l.index(2)]", "[None, 5, ['b', 'a'], 2]"),
    ]);
    fails(&[
        ("{{ l.append(4) }}", "undefined"),
        ("{{ d.update({}) }}", "undefined"),
        ("{{ s.__class__.x }}", "undefined"),
        ("{{ s.index('q') }}", "substring not found"),
    ]);
}

#[test]
fn filters_take_their_keywords() {
    shows(&[
        (
            "[s|replace('l', 'L', 1), 'x'|int(7), '0x1F'|int(base=16), 2.5|round, 2.567|round(1, 'floor')]",
            "['HeLlo wOrld', 7, 31, 2.0, 2.5]",
        ),
        ("d|tojson(separators=(',', ':'), sort_keys=true)", "{\"a\":2.5,\"b\":1}"),
        ("[1, {}]|tojson(indent=1)", "[\n 1,\n {}\n]"),
        ("'<é>'|tojson ~ '<é>'|tojson(ensure_ascii=true)", "\"<é>\"\"<\\u00e9>\""),
        ("[{'n': 'x'}, {'n': 'y'}]|join(', ', attribute='n')", "x, y"),
        (
            "[nothing|length, s|truncate(8, leeway=0), \"they're\"|title, 'a b'|wordcount, '<b>x</b>'|striptags]",
            "[0, 'Hello...', \"They're\", 2, 'x']",
        ),
        ("l|sort(reverse=true) + ['b', 'A']|sort", "[3, 2, 1, 'A', 'b']"),
        (
            "[d|dictsort, l|batch(2, 0)|list, l|map('string')|list]",
            "[[('a', 2.5), ('b', 1)], [[3, 1], [2, 0]], ['3', '1', '2']]",
        ),
        (
            "[{'v': 1, 'k': 'a'}, {'v': 2, 'k': 'b'}]|selectattr('v', 'gt', 1)|map(attribute='k')|first",
            "b",
        ),
        ("'a b/c'|urlencode ~ 'a\\nb'|indent(2)", "a%20b/ca\n  b"),
    ]);
    fails(&[("{{ 1|nope }}", "No filter named 'nope'."), ("{{ 1|tojson(colour=1) }}", "colour")]);
}

#[test]
fn statements_scope_names_as_jinja_does() {
    let cases = [
        ("{% set x = 0 %}{% for i in l %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}", "1110"),
        (
            "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
            "6",
        ),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 3, 4, x=5) }}",
            "13(4,){'x': 5}",
        ),
        (
            "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
            "[1]",
        ),
        ("{% set x = 'a' %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 'b' %}{{ m() }}", "b"),
        (
            "{% for i in [[1, [2]], 3] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
            "(1(2))3",
        ),
        (
            "{% set c = cycler('a', 'b') %}{% set j = joiner('-') %}{% for i in l %}{{ j() }}{{ c.next() }}{% endfor %}",
            "a-b-a",
        ),
        (
            "{% for i in l if i > 1 %}{{ loop.index }}/{{ loop.length }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "1/2x2/2y",
        ),
        (
            "{% filter upper %}a{{ s[0] }}{% endfilter %}{% set t | upper %}b{% endset %}{{ t }}",
            "AHB",
        ),
        ("a\n  {%+ if true %}\nb\n  {%- endif %}\r\nc\n", "a\n  bc"),
        ("{% raw %}{{ x }}{% endraw %}{#- c #}\n{% generation %}y{% endgeneration %}", "{{ x }}y"),
        (
            "{{ [range is callable, s is callable, 3 is odd, 6 is divisibleby 4] }}",
            "[True, False, True, False]",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
    fails(&[
        ("{% for x in 5 %}{% endfor %}", "'int' object is not iterable"),
        ("{% set a, b = [1] %}", "expected 2 values to unpack, got 1"),
        ("{% if a %}", "expected elif or else or endif"),
        ("{{ 'abc }}", "line 1: a string without an end"),
        ("\n{% do l %}", "line 2: unknown tag 'do'"),
        ("{% include 'x' %}", "needs other templates"),
    ]);
}

#[test]
fn what_a_template_may_take_is_bounded() {
    let fault = |source: &str| render(source).expect_err(source).fault;
    assert_eq!(fault("{{ raise_exception('no') }}"), RenderFault::Raised);
    let loops = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}";
    assert_eq!(fault(loops), RenderFault::Instructions);
    let doubled = "{% set ns = namespace(t='ab') %}{% for a in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
    assert_eq!(fault(doubled), RenderFault::BuiltBytes);
    assert_eq!(
        fault("{% for a in range(9) %}{{ 'a' * 10000 }}{% endfor %}"),
        RenderFault::OutputBytes
    );
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert_eq!(fault(recursive), RenderFault::Failed);
    let nested = "{% set ns = namespace(t=[]) %}{% for a in range(1000) %}{% set ns.t = [ns.t] %}{% endfor %}";
    assert_eq!(fault(nested), RenderFault::Failed);
}

#[test]
fn moments_are_what_date_says() {
    let full = "%A %a %d %B %b %Y %y-%m %H:%M:%S %I %p %j %e %F %T %U %W %V %G %D %R %%";
    let cases = [
        (
            0,
            "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12 AM 001  1 1970-01-01 00:00:00 00 00 01 1970 01/01/70 00:00 %",
        ),
        (
            951_827_696,
            "Tuesday Tue 29 February Feb 2000 00-02 12:34:56 12 PM 060 29 2000-02-29 12:34:56 09 09 09 2000 02/29/00 12:34 %",
        ),
        (
            1_735_689_599,
            "Tuesday Tue 31 December Dec 2024 24-12 23:59:59 11 PM 366 31 2024-12-31 23:59:59 52 53 01 2025 12/31/24 23:59 %",
        ),
    ];
    for (seconds, expected) in cases {
        assert_eq!(strftime(moment(seconds), full), expected);
    }
    assert_eq!(
        strftime(moment(0), "%-d.%-m. %-H %_d %^a %w %Z%z %Q 100%"),
        "1.1. 0  1 THU 4  %Q 100%"
    );
}
