//! The scopes of one file: names they define, names they import, paths they use.
//!
//! `#[cfg(test)]` items, fields, arms and statements are ignored.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Stmt, UseTree, Visibility};

use crate::attributes;

/// The kind of item behind a name.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// A function, constant, static or macro.
    Value,
    /// A type or trait.
    Type,
    /// An enum with its variants.
    Enum(Vec<String>),
    /// An inline module, as the index of its scope.
    Inline(usize),
    /// A module in another file.
    File,
}

/// One leaf of a `use` declaration.
#[derive(Clone, Debug)]
pub struct Import {
    /// The path as written.
    pub path: Vec<String>,
    /// The local name; `None` for a glob.
    pub name: Option<String>,
    /// Whether the declaration has a visibility, which makes it a re-export.
    pub is_reexport: bool,
    /// Line in the file.
    pub line: usize,
}

/// A module of a file, or a block that contains items.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The enclosing scope.
    pub parent: Option<usize>,
    /// Names of the enclosing inline modules, outermost first, its own included.
    pub place: Vec<String>,
    /// Whether it is a block: names of the enclosing scope are visible in it.
    pub is_block: bool,
    /// Items by name.
    pub names: BTreeMap<String, Vec<Meaning>>,
    /// Leaves of its `use` declarations.
    pub imports: Vec<Import>,
}

/// A path in an expression, type, pattern or macro.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathUse {
    /// Index of the scope that contains it.
    pub scope: usize,
    /// The path as written.
    pub path: Vec<String>,
}

/// The scopes of a file; the first is the file's own module.
#[derive(Clone, Debug)]
pub struct Scopes {
    /// All scopes, parents before children.
    pub scopes: Vec<Scope>,
    /// Each path, with the line of its first use.
    pub uses: BTreeMap<PathUse, usize>,
    /// Names of `macro_rules!` macros defined in the file.
    pub macros: BTreeSet<String>,
}

impl Scopes {
    /// Collects them from a parsed file.
    pub fn of(file: &syn::File) -> Self {
        let scopes = vec![Scope::default()];
        let scopes = Self { scopes, uses: BTreeMap::new(), macros: BTreeSet::new() };
        let mut collector = Collector { found: scopes, current: 0 };
        collector.visit_file(file);
        collector.found
    }
}

struct Collector {
    found: Scopes,
    current: usize,
}

fn name_of(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

impl Collector {
    fn scope(&mut self) -> &mut Scope {
        self.found.scopes.get_mut(self.current).expect("the current scope exists")
    }

    fn define(&mut self, name: &syn::Ident, meaning: Meaning) {
        self.scope().names.entry(name_of(name)).or_default().push(meaning);
    }

    /// Opens a scope below the current one for `visit` and returns its index.
    fn within(&mut self, module: Option<&syn::Ident>, visit: impl FnOnce(&mut Self)) -> usize {
        let outer = self.current;
        let mut place = self.scope().place.clone();
        place.extend(module.map(name_of));
        let is_block = module.is_none();
        self.current = self.found.scopes.len();
        let inner = self.current;
        self.found.scopes.push(Scope { parent: Some(outer), place, is_block, ..Scope::default() });
        visit(self);
        self.current = outer;
        inner
    }

    fn use_path(&mut self, path: Vec<String>, span: Span) {
        let path = PathUse { scope: self.current, path };
        self.found.uses.entry(path).or_insert(span.start().line);
    }

    fn import(&mut self, tree: &UseTree, prefix: &[String], is_reexport: bool) {
        let mut push = |path: Vec<String>, name: Option<String>, span: Span| {
            self.scope().imports.push(Import { path, name, is_reexport, line: span.start().line });
        };
        let below = |ident: &syn::Ident| [prefix, &[name_of(ident)]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &below(&path.ident), is_reexport),
            UseTree::Name(name) if name.ident == "self" => {
                push(prefix.to_vec(), prefix.last().cloned(), name.ident.span());
            }
            UseTree::Name(name) => {
                push(below(&name.ident), Some(name_of(&name.ident)), name.ident.span());
            }
            UseTree::Rename(rename) => {
                let path =
                    if rename.ident == "self" { prefix.to_vec() } else { below(&rename.ident) };
                push(path, Some(name_of(&rename.rename)), rename.ident.span());
            }
            UseTree::Glob(glob) => push(prefix.to_vec(), None, glob.star_token.spans[0]),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, prefix, is_reexport);
                }
            }
        }
    }

    /// Records the paths among the tokens of a macro invocation or an attribute.
    fn tokens(&mut self, stream: TokenStream) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while let Some(tree) = trees.get(at) {
            match tree {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let path = path_at(&trees, at);
                    let is_member = is_member(trees.get(..at).unwrap_or_default());
                    at += path.len() * 3 - 3;
                    let is_called = trees.get(at + 1).is_some_and(calls);
                    if !is_member && (path.len() > 1 || is_called || is_capital(&path)) {
                        self.use_path(path, first.span());
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

/// The path `a::b::c` that starts at token `at`.
fn path_at(trees: &[TokenTree], mut at: usize) -> Vec<String> {
    let mut path = Vec::new();
    while let Some(TokenTree::Ident(ident)) = trees.get(at) {
        path.push(name_of(ident));
        match trees.get(at + 1..at + 3) {
            Some([first, second]) if is_punct(first, ':') && is_punct(second, ':') => at += 3,
            _ => break,
        }
    }
    path
}

/// Whether an identifier after these tokens is a field, a method or the tail of a path.
fn is_member(before: &[TokenTree]) -> bool {
    match before {
        [.., last, dot] if is_punct(dot, '.') => !is_punct(last, '.'),
        [.., first, second] => is_punct(first, ':') && is_punct(second, ':'),
        _ => false,
    }
}

fn is_punct(tree: &TokenTree, character: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn calls(tree: &TokenTree) -> bool {
    is_punct(tree, '!')
        || matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis)
}

/// Whether a path starts like a type or constant rather than a local variable.
fn is_capital(path: &[String]) -> bool {
    path.first().is_some_and(|name| name.starts_with(|first: char| first.is_uppercase()))
}

fn path_of(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| name_of(&segment.ident)).collect()
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        if attributes::are_cfg_test(attributes::of_item(item)) {
            return;
        }
        match item {
            Item::Const(item) => self.define(&item.ident, Meaning::Value),
            Item::Fn(item) => self.define(&item.sig.ident, Meaning::Value),
            Item::Static(item) => self.define(&item.ident, Meaning::Value),
            Item::Struct(item) => self.define(&item.ident, Meaning::Type),
            Item::Trait(item) => self.define(&item.ident, Meaning::Type),
            Item::TraitAlias(item) => self.define(&item.ident, Meaning::Type),
            Item::Type(item) => self.define(&item.ident, Meaning::Type),
            Item::Union(item) => self.define(&item.ident, Meaning::Type),
            Item::Enum(item) => {
                let variants = item.variants.iter().map(|variant| name_of(&variant.ident));
                self.define(&item.ident, Meaning::Enum(variants.collect()));
            }
            Item::Macro(item) => {
                if let Some(name) = &item.ident {
                    self.define(name, Meaning::Value);
                    self.found.macros.insert(name_of(name));
                }
            }
            Item::Mod(item) if item.content.is_none() => self.define(&item.ident, Meaning::File),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() {
            let inner = self.within(Some(&item.ident), |this| visit::visit_item_mod(this, item));
            self.define(&item.ident, Meaning::Inline(inner));
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            let is_reexport = !matches!(item.vis, Visibility::Inherited);
            self.import(&item.tree, &[], is_reexport);
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        if block.stmts.iter().any(|statement| matches!(statement, Stmt::Item(_))) {
            self.within(None, |this| visit::visit_block(this, block));
        } else {
            visit::visit_block(self, block);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path_of(path);
        if path.leading_colon.is_none() && (names.len() > 1 || is_capital(&names)) {
            let span = path.segments.first().map_or_else(Span::call_site, |s| s.ident.span());
            self.use_path(names, span);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(function) = &*call.func
            && let Some(name) = function.path.get_ident()
        {
            self.use_path(vec![name_of(name)], name.span());
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        if let Some(name) = invocation.path.get_ident() {
            self.use_path(vec![name_of(name)], name.span());
        }
        self.visit_path(&invocation.path);
        self.tokens(invocation.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if !attributes::are_cfg_test(attributes::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        if !attributes::are_cfg_test(attributes::of_trait_item(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !attributes::are_cfg_test(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !attributes::are_cfg_test(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !attributes::are_cfg_test(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !attributes::are_cfg_test(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !attributes::are_cfg_test(&local.attrs) {
            visit::visit_local(self, local);
        }
    }
}
