//! A merge of a layer into its base that was begun and not completed: which state of the base the
//! layer accepts then, and how that is reported. Pure.
//!
//! Only blocks that the layer answers for are written to the base, so that what the layer reads is
//! the same before the merge, during it and after it. Others that stand on the base are refused, as
//! its identity changes before its content does.

use std::path::Path;

use super::header::Header;
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use crate::OpenError;

/// The remedy of a base that a merge has left half-written.
const FINISH: &str = "run `bulkhead layer commit` again for the layer that was merged into it";

impl Header {
    /// How the base that was found at `path` differs from that of this layer; `None` if the layer
    /// may stand on it. `header` is that of a base that is a layer.
    pub(super) fn base_change(
        &self,
        found: &BaseIdentity,
        header: Option<&Self>,
        path: &Path,
    ) -> Option<BaseChange> {
        let is_receiving = header.is_some_and(|header| header.is_receiving);
        if self.merge.is_some_and(|merge| self.accepts(found, merge)) {
            return None;
        }
        if is_receiving {
            let what = "another layer is being merged into it".to_owned();
            return Some(BaseChange { what, remedy: FINISH.to_owned() });
        }
        self.base.change(found, path)
    }

    /// Whether the base has the state that a merge of this layer gives it.
    fn accepts(&self, found: &BaseIdentity, merge: super::uuid::Uuid) -> bool {
        let is_own = match self.base.kind {
            BaseKind::Layer => found.uuid == merge,
            // Its modification time and its sample change with each block.
            BaseKind::File | BaseKind::Device => true,
        };
        let sizes = self.base.size..=self.base.size.max(self.size);
        is_own && found.kind == self.base.kind && sizes.contains(&found.size)
    }
}

/// Refuses a layer that another one is being merged into.
///
/// # Errors
///
/// It is one.
pub(super) fn require_whole(header: &Header, path: &Path) -> Result<(), OpenError> {
    if header.is_receiving {
        let why = format!("a commit into it was interrupted; {FINISH}");
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    Ok(())
}

/// Refuses a layer that is being merged into its base.
///
/// # Errors
///
/// It is one.
pub(super) fn require_no_merge(header: &Header, path: &Path) -> Result<(), OpenError> {
    if header.merge.is_some() {
        let why = format!(
            "a commit of it was interrupted; run `bulkhead layer commit {}` again first",
            crate::shell::shell_path(path)
        );
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::uuid::Uuid;
    use super::*;

    const BASE: &str = "base";

    fn change(top: &Header, found: &BaseIdentity, header: Option<&Header>) -> Option<String> {
        top.base_change(found, header, Path::new(BASE)).map(|change| change.what)
    }

    #[test]
    fn a_merge_accepts_the_base_that_it_changes() {
        let old = BaseIdentity::of_layer(Uuid([1; 16]), 1 << 20);
        let top = Header::new(Uuid([2; 16]), 2 << 20, old.clone(), Path::new(BASE));
        let next = Uuid([3; 16]);
        let new = BaseIdentity::of_layer(next, 2 << 20);
        let mut half = Header::new(Uuid([4; 16]), 2 << 20, old.clone(), Path::new("below"));
        (half.frozen, half.is_receiving) = (Some(next), true);
        assert_eq!(change(&top, &old, None), None);
        assert_eq!(
            change(&top, &new, Some(&half)).unwrap(),
            "another layer is being merged into it"
        );
        let merging = Header { merge: Some(next), ..top.clone() };
        assert_eq!(change(&merging, &old, None), None);
        assert_eq!(change(&merging, &new, Some(&half)), None);
        assert_eq!(change(&merging, &BaseIdentity { size: 1 << 20, ..new.clone() }, None), None);
        for other in [
            BaseIdentity { size: 3 << 20, ..new.clone() },
            BaseIdentity { size: 1 << 19, ..new.clone() },
            BaseIdentity::of_layer(Uuid([5; 16]), 2 << 20),
        ] {
            assert!(change(&merging, &other, None).is_some(), "{other:?}");
        }
        assert!(require_whole(&half, Path::new(BASE)).is_err());
        assert!(require_whole(&merging, Path::new(BASE)).is_ok());
        assert!(require_no_merge(&merging, Path::new(BASE)).is_err());
        assert!(require_no_merge(&half, Path::new(BASE)).is_ok());
    }

    #[test]
    fn a_merge_accepts_a_raw_base_of_its_sizes() {
        let old = BaseIdentity {
            kind: BaseKind::File,
            size: 1 << 20,
            seconds: 5,
            nanoseconds: 6,
            sample: 7,
            uuid: Uuid::default(),
        };
        let top = Header::new(Uuid([2; 16]), 2 << 20, old.clone(), Path::new(BASE));
        let merging = Header { merge: Some(Uuid([3; 16])), ..top.clone() };
        let written = BaseIdentity { seconds: 9, sample: 8, ..old.clone() };
        assert!(change(&top, &written, None).is_some());
        assert_eq!(change(&merging, &written, None), None);
        let grown = BaseIdentity { size: 2 << 20, ..written.clone() };
        assert_eq!(change(&merging, &grown, None), None);
        for other in [
            BaseIdentity { size: 4 << 20, ..written.clone() },
            BaseIdentity { kind: BaseKind::Device, ..written },
        ] {
            assert!(change(&merging, &other, None).is_some(), "{other:?}");
        }
    }
}
