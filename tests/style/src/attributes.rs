//! Attributes of items: test-only conditions, documentation, module paths.

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, ImplItem, Item, Meta, TraitItem};

/// Whether an item with these attributes is compiled for tests only.
pub(crate) fn are_test_only(attributes: &[Attribute]) -> bool {
    are_cfg_test(attributes) || attributes.iter().any(|attribute| attribute.path().is_ident("test"))
}

/// Whether one of these attributes is `cfg(test)` or a condition that requires `test`.
pub(crate) fn are_cfg_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| cfg(attribute).is_some_and(requires_test))
}

/// The condition of a `cfg` attribute.
fn cfg(attribute: &Attribute) -> Option<TokenStream> {
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => Some(list.tokens.clone()),
        _ => None,
    }
}

/// Whether a `cfg` condition names `test` outside of `not`.
fn requires_test(condition: TokenStream) -> bool {
    let mut below_not = false;
    for tree in condition {
        match tree {
            TokenTree::Ident(word) if word == "test" => return true,
            TokenTree::Ident(word) => below_not = word == "not",
            TokenTree::Group(group) if !below_not && requires_test(group.stream()) => return true,
            _ => {}
        }
    }
    false
}

/// Whether there is a doc comment or a `doc` attribute.
pub(crate) fn are_documented(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("doc"))
}

/// The value of `#[path = "…"]`.
pub(crate) fn path_override(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

/// The attributes of an item.
pub(crate) fn of_item(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The attributes of an item of an `impl` block.
pub(crate) fn of_impl_item(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(item) => &item.attrs,
        ImplItem::Fn(item) => &item.attrs,
        ImplItem::Macro(item) => &item.attrs,
        ImplItem::Type(item) => &item.attrs,
        _ => &[],
    }
}

/// The attributes of an item of a trait.
pub(crate) fn of_trait_item(item: &TraitItem) -> &[Attribute] {
    match item {
        TraitItem::Const(item) => &item.attrs,
        TraitItem::Fn(item) => &item.attrs,
        TraitItem::Macro(item) => &item.attrs,
        TraitItem::Type(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_only(attribute: &str) -> bool {
        let item = syn::parse_str::<Item>(&format!("{attribute} fn f() {{}}")).unwrap();
        are_test_only(of_item(&item))
    }

    #[test]
    fn test_only_attributes_are_recognised() {
        assert!(test_only("#[test]"));
        assert!(test_only("#[cfg(test)]"));
        assert!(test_only("#[cfg(all(test, unix))]"));
        assert!(!test_only("#[cfg(not(test))]"));
        assert!(!test_only("#[cfg(unix)] #[inline]"));
    }
}
