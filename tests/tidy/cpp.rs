//! C++ and CUDA sources: which functions there are. Method: comments and literals are blanked, then braces are followed; one that
//! opens behind a parameter list at the level of a namespace or a class is the body of a function.

use std::path::Path;

use super::{Function, name, read};

/// The text with comments, literals and preprocessor lines blanked: as long as before, lines in their places.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_line_start = true;
    while let Some(first) = rest.chars().next() {
        let skip = match first {
            '#' if is_line_start => directive(rest),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            'R' if rest.starts_with("R\"") => raw_literal(rest),
            '"' => literal(rest, '"'),
            // A digit separator stands behind a digit.
            '\'' if !out.ends_with(|c: char| c.is_ascii_hexdigit()) => literal(rest, '\''),
            _ => 0,
        };
        if skip > 0 {
            out.extend(rest[..skip].chars().map(|c| if c == '\n' { c } else { ' ' }));
        } else {
            out.push(first);
            is_line_start = first == '\n' || (is_line_start && first.is_whitespace());
        }
        rest = &rest[skip.max(if skip == 0 { first.len_utf8() } else { 0 })..];
    }
    out
}

fn directive(text: &str) -> usize {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.trim_end_matches('\n').len();
        if !line.trim_end().ends_with('\\') {
            break;
        }
        end += 1;
    }
    end
}

fn literal(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_literal(text: &str) -> usize {
    let Some(open) = text.find('(') else { return text.len() };
    let close = format!("){}\"", &text[2..open]);
    text.find(&close).map_or(text.len(), |at| at + close.len())
}

/// What a brace opens.
enum Opened {
    Function {
        parameters: usize,
    },
    /// A namespace, a type: functions may stand inside.
    Scope,
    /// Values of an initialiser: what stands before goes on behind it.
    Values,
}

/// What a brace opens that stands behind `before`, the text since the last `;`, `{` or `}` of its level.
fn opened(before: &str) -> Opened {
    let text = before.trim();
    let starts =
        |words: &[&str]| words.iter().any(|word| text.split_whitespace().any(|w| w == *word));
    let Some(list) = parameter_list(text) else {
        let is_scope =
            starts(&["namespace", "class", "struct", "union", "enum", "extern"]) || text.is_empty();
        return if is_scope && !text.ends_with('=') { Opened::Scope } else { Opened::Values };
    };
    let behind = text[list.end + 1..].trim_start();
    let initialises = behind.starts_with(':') && !behind.starts_with("::");
    let is_value = behind.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '>');
    if text[..list.start].contains('=') && !text[..list.start].contains("operator")
        || (initialises && is_value)
    {
        return Opened::Values;
    }
    Opened::Function { parameters: count(&text[list.start + 1..list.end]) }
}

/// Where a function's parentheses stand in its head.
fn parameter_list(head: &str) -> Option<std::ops::Range<usize>> {
    let mut from = 0;
    loop {
        let start = from + head[from..].find('(')?;
        let mut depth = 0;
        let length = head[start..].find(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        })?;
        let word = head[..start].trim_end();
        let word = word.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
        let is_attribute =
            ["__launch_bounds__", "alignas", "requires", "decltype", "__attribute__"]
                .contains(&word);
        let is_operator = word == "operator" && head[start..].starts_with("()");
        if !is_attribute && !is_operator {
            return Some(start..start + length);
        }
        from = start + length + 1;
    }
}

fn count(list: &str) -> usize {
    let mut depth = 0;
    let mut commas = 0;
    for c in list.chars() {
        depth += i32::from("(<[{".contains(c)) - i32::from(")>]}".contains(c));
        commas += usize::from(c == ',' && depth == 0);
    }
    if list.trim().is_empty() || list.trim() == "void" { 0 } else { commas + 1 }
}

/// Every function that has its body in the file.
pub fn functions(path: &Path) -> Vec<Function> {
    let functions = functions_in(&read(path));
    functions.unwrap_or_else(|line| panic!("{}:{line}: a brace too many", name(path)))
}

fn functions_in(text: &str) -> Result<Vec<Function>, usize> {
    let text = blanked(text);
    // The text before each open scope's contents, and where the present statement began.
    let (mut found, mut scopes, mut statement) = (Vec::new(), 0_usize, 0);
    let mut at = 0;
    while let Some(step) = text[at..].find(['{', '}', ';']) {
        at += step;
        let line_of = |at: usize| text[..at].matches('\n').count() + 1;
        match &text[at..=at] {
            "{" => match opened(&text[statement..at]) {
                Opened::Scope => {
                    scopes += 1;
                    statement = at + 1;
                }
                Opened::Values => at = closing(&text, at),
                Opened::Function { parameters } => {
                    let end = closing(&text, at);
                    let head = &text[statement..at];
                    let start = statement + head.len() - head.trim_start().len();
                    let (line, last) = (line_of(start), line_of(end));
                    found.push(Function { line, lines: last + 1 - line, parameters });
                    at = end;
                    statement = end + 1;
                }
            },
            "}" => {
                scopes = scopes.checked_sub(1).ok_or_else(|| line_of(at))?;
                statement = at + 1;
            }
            _ => statement = at + 1,
        }
        at += 1;
        if at >= text.len() {
            break;
        }
    }
    Ok(found)
}

/// The brace that closes the one at `open`.
fn closing(text: &str, open: usize) -> usize {
    let mut depth = 0;
    let length = text[open..].find(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    });
    open + length.unwrap_or(text.len() - open - 1)
}

#[test]
fn functions_are_found_whatever_their_form() {
    let text = r#"
namespace a {
struct S {
  S(int x, std::map<int, int> y) : x_{x}, y_(y) {
    run();
  }
  int x_ = 0;
  int get() const noexcept { return '{'; }
};
constexpr int kTable[] = {1, 2, 3};
constexpr auto kPick = [](int a) { return a; };
// a { in a comment
template <int N>
__global__ void __launch_bounds__(128, 2)
    kernel(const float* a, float* b,
           int n) {
  if (n) {
    b[0] = a[0];
  }
}
}  // namespace a
TEST_CASE("a } in a name") {
}
"#;
    let found = functions_in(text).expect("braces match");
    let shapes: Vec<_> = found.iter().map(|f| (f.line, f.lines, f.parameters)).collect();
    assert_eq!(shapes, [(4, 3, 2), (8, 1, 0), (13, 8, 3), (22, 2, 0)]);
}
