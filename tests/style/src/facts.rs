//! Declarations of one file: functions, types, unsafe code, `cfg` attributes, public items.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Signature, Visibility};

use crate::attributes;

/// A function with a body.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of its `fn`.
    pub line: usize,
    /// Lines from its `fn` to its closing brace.
    pub length: usize,
    /// Whether it is compiled for tests only.
    pub is_test: bool,
}

/// A struct, enum, union, trait or type alias.
#[derive(Clone, Debug)]
pub struct Type {
    /// Its keyword.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Line of its name.
    pub line: usize,
    /// Fields or variants.
    pub members: usize,
    /// Whether it is compiled for tests only.
    pub is_test: bool,
}

/// One use of `unsafe`.
#[derive(Clone, Debug)]
pub struct Unsafe {
    /// `block`, `fn`, `impl`, `trait` or `extern`.
    pub kind: &'static str,
    /// Line of the keyword.
    pub line: usize,
    /// Whether it is compiled for tests only.
    pub is_test: bool,
}

/// A `cfg` attribute, `cfg_attr` attribute or `cfg!` macro.
#[derive(Clone, Debug)]
pub struct Cfg {
    /// Whether its condition requires `test`.
    pub is_test: bool,
}

/// An item, method or field with a visibility.
#[derive(Clone, Debug)]
pub struct Public {
    /// Whether it is `pub` rather than `pub(crate)` or `pub(super)`.
    pub is_everywhere: bool,
    /// Whether it has a doc comment.
    pub is_documented: bool,
}

/// All declarations of one file.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Functions with a body.
    pub functions: Vec<Function>,
    /// Types and traits.
    pub types: Vec<Type>,
    /// Uses of `unsafe`.
    pub unsafes: Vec<Unsafe>,
    /// `cfg` attributes and macros.
    pub cfgs: Vec<Cfg>,
    /// Items with a visibility, except in test-only code.
    pub publics: Vec<Public>,
    /// First and last lines of each outermost test-only item.
    pub test_lines: Vec<(usize, usize)>,
}

impl Facts {
    /// Collects them from a parsed file.
    pub fn of(file: &syn::File) -> Self {
        let mut collector = Collector::default();
        collector.visit_file(file);
        collector.facts
    }
}

#[derive(Default)]
struct Collector {
    facts: Facts,
    is_test: bool,
}

fn line(span: Span) -> usize {
    span.start().line
}

impl Collector {
    /// Runs `visit` with `is_test` set if the item's attributes make it test-only.
    fn enter(&mut self, attributes: &[Attribute], span: Span, visit: impl FnOnce(&mut Self)) {
        let outer = self.is_test;
        if !outer && attributes::are_test_only(attributes) {
            self.is_test = true;
            self.facts.test_lines.push((line(span), span.end().line));
        }
        visit(self);
        self.is_test = outer;
    }

    fn function(&mut self, signature: &Signature, body: &syn::Block) {
        let first = line(signature.span());
        let last = body.span().end().line;
        self.facts.functions.push(Function {
            name: signature.ident.to_string(),
            line: first,
            length: last - first + 1,
            is_test: self.is_test,
        });
    }

    fn signature(&mut self, signature: &Signature) {
        if let Some(keyword) = &signature.unsafety {
            self.unsafe_at("fn", keyword.span);
        }
    }

    fn unsafe_at(&mut self, kind: &'static str, span: Span) {
        self.facts.unsafes.push(Unsafe { kind, line: line(span), is_test: self.is_test });
    }

    fn declare(&mut self, kind: &'static str, name: &syn::Ident, members: usize) {
        self.facts.types.push(Type {
            kind,
            name: name.to_string(),
            line: line(name.span()),
            members,
            is_test: self.is_test,
        });
    }

    fn public(&mut self, visibility: &Visibility, attributes: &[Attribute]) {
        let is_everywhere = match visibility {
            Visibility::Public(_) => true,
            Visibility::Restricted(_) => false,
            Visibility::Inherited => return,
        };
        if !self.is_test {
            let is_documented = attributes::are_documented(attributes);
            self.facts.publics.push(Public { is_everywhere, is_documented });
        }
    }

    /// Records unsafe blocks in the arguments of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        for tree in tokens {
            match tree {
                TokenTree::Ident(word) if word == "unsafe" => self.unsafe_at("block", word.span()),
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        self.enter(attributes::of_item(item), item.span(), |this| visit::visit_item(this, item));
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = attributes::of_impl_item(item);
        self.enter(attributes, item.span(), |this| visit::visit_impl_item(this, item));
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            let is_test = attributes::are_test_only(std::slice::from_ref(attribute));
            self.facts.cfgs.push(Cfg { is_test });
        }
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        if invocation.path.is_ident("cfg") {
            self.facts.cfgs.push(Cfg { is_test: false });
        }
        self.tokens(invocation.tokens.clone());
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.public(&item.vis, &item.attrs);
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.public(&item.vis, &item.attrs);
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.function(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.signature(signature);
        visit::visit_signature(self, signature);
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        self.unsafe_at("block", expression.unsafe_token.span);
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(keyword) = &item.unsafety {
            self.unsafe_at("impl", keyword.span);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.unsafe_at("extern", item.abi.extern_token.span);
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if let Some(keyword) = &item.unsafety {
            self.unsafe_at("trait", keyword.span);
        }
        self.public(&item.vis, &item.attrs);
        self.declare("trait", &item.ident, item.items.len());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.public(&item.vis, &item.attrs);
        self.declare("struct", &item.ident, item.fields.len());
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.public(&item.vis, &item.attrs);
        self.declare("enum", &item.ident, item.variants.len());
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.public(&item.vis, &item.attrs);
        self.declare("union", &item.ident, item.fields.named.len());
        visit::visit_item_union(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.public(&item.vis, &item.attrs);
        self.declare("type", &item.ident, 0);
        visit::visit_item_type(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_static(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.public(&item.vis, &item.attrs);
        visit::visit_impl_item_const(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.public(&field.vis, &field.attrs);
        visit::visit_field(self, field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Facts {
        Facts::of(&syn::parse_file(text).unwrap())
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let facts = facts(
            "/// Doc.\n#[inline]\npub fn a(\n    x: u8,\n) {\n    b();\n}\ntrait T { fn c(); fn d() {} }",
        );
        let lengths: Vec<_> =
            facts.functions.iter().map(|f| (f.name.as_str(), f.line, f.length)).collect();
        assert_eq!(lengths, [("a", 3, 5), ("d", 8, 1)]);
    }

    #[test]
    fn members_of_types_are_counted() {
        let facts = facts("struct A { x: u8, y: u8 }\nenum B { C, D(u8), E }\nstruct F(u8);");
        let members: Vec<_> = facts.types.iter().map(|t| (t.name.as_str(), t.members)).collect();
        assert_eq!(members, [("A", 2), ("B", 3), ("F", 1)]);
    }

    #[test]
    fn unsafe_is_found_in_macros_too() {
        let facts = facts(
            "unsafe fn a() {}\nfn b() { assert!(unsafe { c() }); unsafe { d() } }\nunsafe impl E for F {}",
        );
        let kinds: Vec<_> = facts.unsafes.iter().map(|u| (u.kind, u.line)).collect();
        assert_eq!(kinds, [("fn", 1), ("block", 2), ("block", 2), ("impl", 3)]);
    }

    #[test]
    fn test_code_is_marked() {
        let facts = facts("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}");
        let is_test: Vec<_> = facts.functions.iter().map(|f| f.is_test).collect();
        assert_eq!(is_test, [false, true]);
        assert_eq!(facts.test_lines, [(2, 5)]);
        assert_eq!(facts.cfgs.iter().map(|c| c.is_test).collect::<Vec<_>>(), [true]);
    }

    #[test]
    fn documented_items_are_counted_by_visibility() {
        let facts = facts(
            "/// A.\npub struct A { pub x: u8, y: u8 }\npub(crate) fn b() {}\nimpl A { /// C.\npub fn c() {} }",
        );
        let found: Vec<_> =
            facts.publics.iter().map(|p| (p.is_everywhere, p.is_documented)).collect();
        assert_eq!(found, [(true, true), (true, false), (false, false), (true, true)]);
    }
}
