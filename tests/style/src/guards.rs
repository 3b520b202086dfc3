//! Log calls while a lock is held.
//!
//! Reads tokens, not types: a guard is a variable whose initialiser ends in `.lock()` (or in that
//! and a conversion of its `Result`), from its `let` to the end of the block or to `drop(guard)`;
//! and `&mut self` in a type that a file of the package keeps in a `Mutex`.

use std::collections::HashSet;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The type names that a file keeps in a `Mutex`.
pub fn locked_types(file: &syn::File) -> HashSet<String> {
    let mut types = LockedTypes::default();
    types.visit_file(file);
    types.0
}

/// The lines of log calls under a lock. Methods of the types in `locked` hold their lock.
pub fn logs_under_lock(file: &syn::File, locked: &HashSet<String>) -> Vec<usize> {
    let mut finder = Finder { locked, guards: Vec::new(), lines: Vec::new() };
    finder.visit_file(file);
    finder.lines
}

#[derive(Default)]
struct LockedTypes(HashSet<String>);

impl<'ast> Visit<'ast> for LockedTypes {
    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        if segment.ident == "Mutex"
            && let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments
        {
            let mut names = Names::default();
            names.visit_angle_bracketed_generic_arguments(arguments);
            self.0.extend(names.0);
        }
        visit::visit_path_segment(self, segment);
    }
}

struct Finder<'l> {
    locked: &'l HashSet<String>,
    /// The guards in scope.
    guards: Vec<String>,
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let is_locked = match item.self_ty.as_ref() {
            syn::Type::Path(own) => {
                let name = own.path.segments.last().map(|segment| segment.ident.to_string());
                name.is_some_and(|name| self.locked.contains(&name))
            }
            _ => false,
        };
        let before = self.guards.len();
        if is_locked {
            self.guards.push("self".to_owned());
        }
        visit::visit_item_impl(self, item);
        self.guards.truncate(before);
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let before = self.guards.clone();
        visit::visit_block(self, block);
        self.guards = before;
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        visit::visit_local(self, local);
        if let Some(init) = &local.init
            && is_lock(&init.expr)
        {
            let mut names = Names::default();
            names.visit_pat(&local.pat);
            self.guards.extend(names.0);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        visit::visit_expr_call(self, call);
        if let syn::Expr::Path(function) = call.func.as_ref() {
            if function.path.is_ident("drop") {
                let mut names = Names::default();
                call.args.iter().for_each(|argument| names.visit_expr(argument));
                self.guards.retain(|guard| !names.0.contains(guard));
            }
            if is_log_path(&function.path) {
                self.note(call);
            }
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if is_log_path(&call.path) {
            self.note(call);
        }
    }
}

impl Finder<'_> {
    fn note(&mut self, call: &impl Spanned) {
        if !self.guards.is_empty() {
            self.lines.push(call.span().start().line);
        }
    }
}

/// `tracing::warn` and its siblings, `log::print` and its siblings.
fn is_log_path(path: &syn::Path) -> bool {
    let mut segments = path.segments.iter();
    match (segments.next(), segments.next()) {
        (Some(module), Some(name)) => {
            module.ident == "tracing"
                || module.ident == "log" && name.ident.to_string().starts_with("print")
        }
        _ => false,
    }
}

/// Whether an expression is `….lock()`, perhaps followed by a conversion of its `Result`.
fn is_lock(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::MethodCall(call) if call.method == "lock" => true,
        syn::Expr::MethodCall(call) => {
            let converts = ["unwrap", "expect", "unwrap_or_else", "ok"];
            converts.iter().any(|name| call.method == name) && is_lock(&call.receiver)
        }
        syn::Expr::Try(inner) => is_lock(&inner.expr),
        _ => false,
    }
}

#[derive(Default)]
struct Names(Vec<String>);

impl<'ast> Visit<'ast> for Names {
    fn visit_ident(&mut self, ident: &'ast syn::Ident) {
        self.0.push(ident.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        let file = syn::parse_file(text).unwrap();
        logs_under_lock(&file, &locked_types(&file))
    }

    #[test]
    fn a_log_call_after_a_lock_is_found() {
        assert_eq!(lines("fn f() {\nlet a = b.lock();\ntracing::warn!(\"x\");\n}"), [3]);
        assert_eq!(lines("fn f() {\nlet a = b.lock().unwrap();\nlog::print(1);\n}"), [3]);
        assert_eq!(lines("fn f() {\nlet a = b.lock();\nif c {\ntracing::info!(\"x\");\n}\n}"), [4]);
    }

    #[test]
    fn a_log_call_outside_of_the_lock_is_none() {
        assert!(lines("fn f() { { let a = b.lock(); } tracing::warn!(\"x\"); }").is_empty());
        assert!(lines("fn f() { let a = b.lock(); drop(a); tracing::warn!(\"x\"); }").is_empty());
        assert!(lines("fn f() { let n = b.lock().len(); tracing::warn!(\"x\"); }").is_empty());
        assert!(
            lines("mod tests { fn f() { let a = b.lock(); tracing::warn!(\"x\"); } }").is_empty()
        );
    }

    #[test]
    fn methods_of_a_locked_type_hold_its_lock() {
        let text = "struct S { inner: Mutex<Inner> }\nimpl Inner {\nfn f(&mut self) {\n\
                    tracing::warn!(\"x\");\n}\n}\nimpl S { fn g(&self) { tracing::info!(\"y\"); } }";
        assert_eq!(lines(text), [4]);
    }
}
