//! Rust sources, parsed: who imports whom, and how long functions are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::spanned::Spanned as _;
use syn::visit::Visit;

use super::{Function, files, is_test, name, read, report, root};

fn parsed(path: &Path) -> syn::File {
    syn::parse_file(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", name(path)))
}

/// A path that begins with `crate` or `super`, and its line.
struct Use {
    line: usize,
    /// `super`s at its front; 0: it begins with `crate`.
    supers: usize,
    /// The name behind them; empty for `super::*` and the like.
    first: String,
}

/// Every such path in `tokens`; one for each member of `crate::{…}`.
fn uses(tokens: TokenStream, found: &mut Vec<Use>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let word = |at: usize| match trees.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        _ => String::new(),
    };
    let is_colon =
        |at: usize| matches!(trees.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    let begins = |at: usize| ["crate", "super"].contains(&word(at).as_str()) && is_colon(at + 1);
    let mut at = 0;
    while at < trees.len() {
        let line = trees[at].span().start().line;
        if !begins(at) {
            if let TokenTree::Group(group) = &trees[at] {
                uses(group.stream(), found);
            }
            at += 1;
            continue;
        }
        let mut supers = 0;
        while begins(at) {
            supers += usize::from(word(at) == "super");
            at += 3;
        }
        match trees.get(at) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                for first in firsts(group.stream()) {
                    found.push(Use { line, supers, first });
                }
            }
            _ => found.push(Use { line, supers, first: word(at) }),
        }
        at += 1;
    }
}

/// The first name of each member of a braced use tree.
fn firsts(tree: TokenStream) -> Vec<String> {
    let (mut found, mut is_first) = (Vec::new(), true);
    for token in tree {
        match token {
            TokenTree::Ident(ident) if is_first => found.push(ident.to_string()),
            TokenTree::Punct(mark) if mark.as_char() == ',' => {
                is_first = true;
                continue;
            }
            _ => {}
        }
        is_first = false;
    }
    found
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.to_token_stream().to_string().contains("test")
    })
}

/// The lines of `text` that stand in no module of its own for tests.
pub fn without_test_modules(text: &str) -> String {
    let Ok(file) = syn::parse_file(text) else { return text.to_owned() };
    let cut: Vec<_> = file
        .items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) if module.content.is_some() && is_for_tests(&module.attrs) => {
                let span = module.span();
                Some(span.start().line..=span.end().line)
            }
            _ => None,
        })
        .collect();
    let lines = text.lines().zip(1..);
    let kept = lines.filter(|(_, number)| !cut.iter().any(|range| range.contains(number)));
    kept.map(|(line, _)| format!("{line}\n")).collect()
}

#[test]
fn code_behind_unit_tests_is_judged() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
    assert_eq!(without_test_modules(text), "fn a() {}\nfn c() {}\n");
}

/// The paths in what the node runs of a module that stands `depth` below the root, each with the depth of the inline module that it
/// stands in.
fn uses_of(items: &[syn::Item], depth: usize) -> Vec<(usize, Use)> {
    let mut all = Vec::new();
    for item in items {
        match item {
            syn::Item::Mod(module) if is_for_tests(&module.attrs) => {}
            syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) => {
                all.extend(uses_of(inner, depth + 1));
            }
            item => {
                let mut found = Vec::new();
                uses(item.to_token_stream(), &mut found);
                all.extend(found.into_iter().map(|used| (depth, used)));
            }
        }
    }
    all
}

/// The modules of a file under `src`: `src/bus/intake/door.rs` is `bus`, `intake`, `door`.
fn modules(path: &Path) -> Vec<String> {
    let file = name(path);
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inside.split('/').map(str::to_owned).collect()
}

/// The modules of the crate in the order of `src/lib.rs`: each may use what stands below it.
fn floors() -> Vec<String> {
    let lib = parsed(&root().join("src/lib.rs"));
    let modules = lib.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

fn node_files() -> Vec<PathBuf> {
    let beside = ["src/lib.rs", "src/main.rs"];
    let mut paths = files("src", &["rs"]);
    paths.retain(|path| !is_test(path) && !beside.contains(&name(path).as_str()));
    paths
}

#[test]
fn a_module_imports_only_what_stands_below_it() {
    let floors = floors();
    let floor = |module: &str| floors.iter().position(|of| of == module);
    let (mut breaches, mut seen) = (Vec::new(), 0);
    for path in node_files() {
        let modules = modules(&path);
        let own = floor(&modules[0]).unwrap_or_else(|| panic!("src/lib.rs lacks {}", modules[0]));
        for (depth, used) in uses_of(&parsed(&path).items, modules.len()) {
            let at = format!("{}:{}: {}", name(&path), used.line, used.first);
            let from_root = used.supers == 0 || used.supers >= depth;
            if !from_root || used.first == modules[0] {
                continue;
            }
            seen += 1;
            match floor(&used.first) {
                Some(below) if below > own => {}
                Some(_) => breaches.push(format!("{at} stands above {}", modules[0])),
                None => breaches.push(format!("{at} is no module of src/lib.rs")),
            }
        }
    }
    assert!(seen > 400, "found only {seen} imports");
    report(&breaches);
}

/// What several modules have for one idea: its section of the configuration, and for `config` the whole of them.
const SHARED_NAME: &str = "Config";

/// The names of all types of a file, of those within functions, too.
#[derive(Default)]
struct TypeNames(Vec<String>);

impl<'ast> Visit<'ast> for TypeNames {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            syn::visit::visit_item_mod(self, module);
        }
    }
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.0.push(item.ident.to_string());
        syn::visit::visit_item_trait(self, item);
    }
    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.0.push(item.ident.to_string());
    }
}

#[test]
fn one_word_is_one_type() {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in node_files() {
        let mut names = TypeNames::default();
        names.visit_file(&parsed(&path));
        for ident in names.0 {
            types.entry(ident).or_default().push(name(&path));
        }
    }
    assert!(types.len() > 400, "found only {} types", types.len());
    types.retain(|name, files| files.len() > 1 && name != SHARED_NAME);
    report(
        &types
            .iter()
            .map(|(name, files)| format!("{name}: {}", files.join(", ")))
            .collect::<Vec<_>>(),
    );
}

/// Every function with a body, tests included.
pub fn functions(path: &Path) -> Vec<Function> {
    fn parameters(signature: &syn::Signature) -> usize {
        let is_own = |input: &&syn::FnArg| !matches!(input, syn::FnArg::Receiver(_));
        signature.inputs.iter().filter(is_own).count()
    }
    struct Finder(Vec<Function>);
    impl Finder {
        fn add(&mut self, signature: &syn::Signature, body: &syn::Block) {
            let (start, end) = (signature.span().start().line, body.span().end().line);
            let lines = end + 1 - start;
            self.0.push(Function { line: start, lines, parameters: parameters(signature) });
        }
    }
    impl<'ast> Visit<'ast> for Finder {
        fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
            self.add(&function.sig, &function.block);
            syn::visit::visit_item_fn(self, function);
        }
        fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
            self.add(&function.sig, &function.block);
            syn::visit::visit_impl_item_fn(self, function);
        }
        fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
            if let Some(body) = &function.default {
                self.add(&function.sig, body);
            }
            syn::visit::visit_trait_item_fn(self, function);
        }
        fn visit_foreign_item_fn(&mut self, function: &'ast syn::ForeignItemFn) {
            let line = function.span().start().line;
            let parameters = parameters(&function.sig);
            self.0.push(Function { line, lines: 1, parameters });
        }
    }
    let mut finder = Finder(Vec::new());
    finder.visit_file(&parsed(path));
    finder.0
}
