//! Running text as a sequence of words with line numbers.

/// A word of a passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// In lower case. A code span is one word, `` ` ``.
    pub text: String,
    /// Line in the file.
    pub line: usize,
    /// Whether only white space separates it from the previous word.
    pub follows: bool,
}

/// A unit of running text: a comment block, a string literal, a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// Its words.
    pub words: Vec<Word>,
    /// Whether it is a comment in Rust code.
    pub is_comment: bool,
    is_broken: bool,
    is_fenced: bool,
}

impl Passage {
    /// Builds a passage from numbered lines.
    pub fn new<'a>(lines: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let mut passage = Self::default();
        for (number, line) in lines {
            passage.add_line(number, line);
        }
        passage
    }

    /// An empty passage for a comment in Rust code.
    pub fn comment() -> Self {
        Self { is_comment: true, ..Self::default() }
    }

    /// Appends a line. Fenced code is skipped.
    pub fn add_line(&mut self, number: usize, line: &str) {
        let line = line.trim();
        let is_fence = line.starts_with("```");
        self.is_fenced ^= is_fence;
        if is_fence || self.is_fenced || line.is_empty() {
            self.is_broken = true;
            return;
        }
        let mut rest = line;
        while let Some((before, code)) = rest.split_once('`') {
            let Some((_, after)) = code.split_once('`') else { break };
            self.add_words(number, before);
            self.push(number, "`".to_owned());
            rest = after;
        }
        self.add_words(number, rest);
    }

    fn add_words(&mut self, line: usize, text: &str) {
        let mut word = String::new();
        for character in text.chars() {
            if character.is_alphanumeric() || matches!(character, '_' | '\'' | '’') {
                word.extend(character.to_lowercase());
                continue;
            }
            self.push(line, std::mem::take(&mut word));
            self.is_broken |= !character.is_whitespace();
        }
        self.push(line, word);
    }

    fn push(&mut self, line: usize, text: String) {
        if !text.is_empty() {
            let follows = !self.is_broken && !self.words.is_empty();
            self.words.push(Word { text, line, follows });
            self.is_broken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(lines: &[&str]) -> Vec<String> {
        let passage = Passage::new(lines.iter().enumerate().map(|(at, line)| (at + 1, *line)));
        let show = |word: &Word| {
            let mark = if word.follows { "" } else { "/" };
            format!("{mark}{}{}", word.text, word.line)
        };
        passage.words.iter().map(show).collect()
    }

    #[test]
    fn words_follow_over_line_breaks_but_not_over_marks() {
        assert_eq!(words(&["One  two", "three, four"]), ["/one1", "two1", "three2", "/four2"]);
        assert_eq!(words(&["a", "", "b"]), ["/a1", "/b3"]);
    }

    #[test]
    fn a_code_span_is_one_word() {
        assert_eq!(words(&["a `x y` b"]), ["/a1", "`1", "b1"]);
    }

    #[test]
    fn fenced_code_is_no_prose() {
        assert_eq!(words(&["a", "```sh", "b", "```", "c"]), ["/a1", "/c5"]);
    }
}
