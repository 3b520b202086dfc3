//! Extraction of comments and string literals from Rust source.
//!
//! The token positions come from `proc_macro2`; the gaps between tokens contain only white space
//! and comments. Slashes in strings and quotes in lifetimes therefore need no special treatment.

use std::ops::Range;

use proc_macro2::{TokenStream, TokenTree};

use crate::lines::{LineIndex, part};

/// One line of a comment, without its delimiters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// Line in the file.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// Its opening delimiter; the lines of one block share it.
    pub mark: &'static str,
    /// Whether no code precedes it on its line.
    pub leads: bool,
}

impl Comment {
    /// Whether `next` belongs to the same comment block.
    pub fn is_continued_by(&self, next: &Self) -> bool {
        self.leads && next.leads && self.line + 1 == next.line && self.mark == next.mark
    }
}

/// A string literal in source form, quotes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal {
    /// First line in the file.
    pub line: usize,
    /// The literal's source text.
    pub text: String,
}

/// The comments and string literals of `text`; `stream` are its tokens.
pub fn scan(text: &str, stream: &TokenStream) -> (Vec<Comment>, Vec<Literal>) {
    let lines = LineIndex::new(text);
    let mut leaves = Vec::new();
    collect(stream, text, &mut leaves);
    let mut comments = Vec::new();
    let mut end = 0;
    for leaf in &leaves {
        comments_between(text, end..leaf.start, &lines, &mut comments);
        end = leaf.end;
    }
    comments_between(text, end..text.len(), &lines, &mut comments);
    let literals = leaves
        .into_iter()
        .filter(|leaf| is_string(part(text, leaf.clone())))
        .map(|leaf| Literal { line: lines.line(leaf.start), text: part(text, leaf).to_owned() })
        .collect();
    (comments, literals)
}

/// Collects the byte range of each token and delimiter, except doc comments.
fn collect(stream: &TokenStream, text: &str, leaves: &mut Vec<Range<usize>>) {
    for tree in stream.clone() {
        // A doc comment is lexed to `#[doc = "…"]`, and each token has the comment's span.
        if part(text, tree.span().byte_range()).starts_with('/') && !is_slash(&tree) {
            continue;
        }
        if let TokenTree::Group(group) = &tree {
            leaves.push(group.span_open().byte_range());
            collect(&group.stream(), text, leaves);
            leaves.push(group.span_close().byte_range());
        } else {
            leaves.push(tree.span().byte_range());
        }
    }
}

fn is_slash(tree: &TokenTree) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '/')
}

fn is_string(token: &str) -> bool {
    let quoted = token.trim_start_matches(['b', 'c', 'r', '#']);
    quoted.starts_with('"')
}

fn comments_between(text: &str, gap: Range<usize>, lines: &LineIndex, found: &mut Vec<Comment>) {
    let mut at = gap.start;
    while let Some(offset) = part(text, at..gap.end).find('/') {
        let start = at + offset;
        let rest = part(text, start..gap.end);
        let length = if rest.starts_with("/*") { block_length(rest) } else { line_length(rest) };
        push_lines(text, start..start + length, lines, found);
        at = start + length;
    }
}

fn line_length(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// The length of a block comment, nested comments included.
fn block_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = text.as_bytes().get(at..).unwrap_or_default();
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth = depth.saturating_sub(1);
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

const MARKS: [&str; 6] = ["////", "///", "//!", "//", "/**", "/*!"];

fn push_lines(text: &str, range: Range<usize>, lines: &LineIndex, found: &mut Vec<Comment>) {
    let comment = part(text, range.clone());
    let mark = MARKS.into_iter().find(|mark| comment.starts_with(mark)).unwrap_or("/*");
    let first = lines.line(range.start);
    let before = part(text, lines.start(first)..range.start);
    let body = comment.strip_prefix(mark).unwrap_or(comment);
    let body = if mark.starts_with("/*") { body.strip_suffix("*/").unwrap_or(body) } else { body };
    for (index, line) in body.lines().enumerate() {
        let words = if index == 0 { line } else { line.trim_start().trim_start_matches('*') };
        let leads = index > 0 || before.trim().is_empty();
        found.push(Comment { line: first + index, text: words.trim().to_owned(), mark, leads });
    }
    if body.is_empty() {
        let leads = before.trim().is_empty();
        found.push(Comment { line: first, text: String::new(), mark, leads });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(text: &str) -> (Vec<Comment>, Vec<Literal>) {
        scan(text, &text.parse().unwrap())
    }

    fn words(text: &str) -> Vec<(usize, String)> {
        scanned(text).0.into_iter().map(|comment| (comment.line, comment.text)).collect()
    }

    #[test]
    fn comments_of_each_form_are_found() {
        let text = "//! owns\n\n/// doc\nfn f() { // trailing\n    /* one\n     * two */ g(a / b);\n}\n// end";
        let expected =
            [(1, "owns"), (3, "doc"), (4, "trailing"), (5, "one"), (6, "two"), (8, "end")];
        assert_eq!(words(text), expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn slashes_in_strings_are_no_comments() {
        assert_eq!(words("const URL: &str = \"http://x\"; const C: char = '/';"), []);
    }

    #[test]
    fn nested_block_comments_end_at_their_own_end() {
        assert_eq!(words("/* a /* b */ c */ fn f() {}"), [(1, "a /* b */ c".to_owned())]);
    }

    #[test]
    fn a_trailing_comment_does_not_lead_its_line() {
        let leads = |text| scanned(text).0.iter().map(|comment| comment.leads).collect::<Vec<_>>();
        assert_eq!(leads("fn f() {} // after\n    // alone"), [false, true]);
    }

    #[test]
    fn an_empty_comment_line_counts() {
        assert_eq!(words("//! a\n//!\n//! b").len(), 3);
    }

    #[test]
    fn string_literals_are_found_with_their_line() {
        let literals = scanned("fn f() {\n    g(\"a // b\", r#\"c\"#, b\"d\", 'e', 5);\n}").1;
        let texts: Vec<_> = literals.iter().map(|literal| literal.text.as_str()).collect();
        assert_eq!(texts, ["\"a // b\"", "r#\"c\"#", "b\"d\""]);
        assert!(literals.iter().all(|literal| literal.line == 2));
    }
}
