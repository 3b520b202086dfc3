//! The answer of an exploration, and where it goes: to standard output and to a file for a CI.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::junit::junit_of_error;
use super::recording::{RecordingArguments, shown};
use crate::cmd::print;
use crate::exit::Exit;
use crate::log;
use crate::sanitize::sanitize;

/// How an exploration ended.
pub(super) enum SearchAnswer {
    /// With a result: the text for standard output, the JUnit XML, and the exit code.
    Found { text: String, junit: String, exit: Exit },
    /// The command line asks for what there is not; the text says why.
    Refused(String),
    /// A signal arrived before there was a result.
    Interrupted,
}

/// Where an answer goes.
pub(super) struct AnswerOutput<'a> {
    files: &'a RecordingArguments,
    is_json: bool,
    junit: Option<(PathBuf, File)>,
}

impl<'a> AnswerOutput<'a> {
    /// Opens the file of `--junit`, so that a wrong one is noticed before the exploration. What an
    /// earlier command wrote to it is gone from now on.
    ///
    /// # Errors
    ///
    /// It cannot be written, or is one of `kept`, the log or the base.
    pub(super) fn open(
        files: &'a RecordingArguments,
        kept: &[&Path],
        junit: Option<&Path>,
        is_json: bool,
    ) -> anyhow::Result<Self> {
        let open = |path: &Path| -> anyhow::Result<_> {
            files.require_other(path, kept)?;
            let file = File::create(path).with_context(|| cannot_write(path))?;
            Ok((path.to_owned(), file))
        };
        Ok(Self { files, is_json, junit: junit.map(open).transpose()? })
    }

    /// Gives the answer, also one that is an error, and returns the exit code.
    ///
    /// # Errors
    ///
    /// The error that is the answer, or one of the output.
    pub(super) fn give(self, answer: anyhow::Result<SearchAnswer>) -> anyhow::Result<ExitCode> {
        match answer {
            Ok(SearchAnswer::Found { text, junit, exit }) => {
                self.write_junit(&junit)?;
                print(&text)?;
                Ok(exit.into())
            }
            Ok(SearchAnswer::Refused(reason)) => {
                log::print(format_args!("error: {}", sanitize(&reason)));
                self.fail("error", &reason)?;
                Ok(Exit::BadConfig.into())
            }
            Ok(SearchAnswer::Interrupted) => {
                self.fail("interrupted", "interrupted")?;
                Ok(Exit::Interrupted.into())
            }
            Err(error) => {
                self.fail("error", &format!("{error:#}"))?;
                Err(error)
            }
        }
    }

    /// Writes the reports of an end without a result.
    fn fail(self, end: &str, reason: &str) -> anyhow::Result<()> {
        if self.is_json {
            let answer = json!({
                "log": self.files.log.display().to_string(),
                "base": self.files.base.display().to_string(),
                "end": end,
                "complete": false,
                "error": reason,
            });
            print(&format!("{answer:#}\n"))?;
        }
        let junit = junit_of_error(&shown(&self.files.log), reason);
        self.write_junit(&junit)
    }

    fn write_junit(self, text: &str) -> anyhow::Result<()> {
        let Some((path, mut file)) = self.junit else { return Ok(()) };
        let written: io::Result<()> = file.write_all(text.as_bytes());
        written.with_context(|| cannot_write(&path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", shown(path))
}
