//! Enums whose variants have a name in the configuration.

/// An enum with one name for each variant.
pub trait Named: Copy + 'static {
    /// All variants, in the order the documentation lists them.
    const ALL: &'static [Self];

    /// The variant's name in the configuration.
    fn name(self) -> &'static str;

    /// The variant of that name, `None` if there is none.
    #[must_use]
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|variant| variant.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Debug;

    use super::*;
    use crate::{CacheMode, DetectZeroes, DiskFormat, EngineKind, ImageLocking, StableCopyMode};

    fn check<T: Named + Debug + PartialEq>() {
        let names: HashSet<&str> = T::ALL.iter().map(|variant| variant.name()).collect();
        assert_eq!(names.len(), T::ALL.len(), "names are unique: {names:?}");
        for variant in T::ALL {
            assert_eq!(T::from_name(variant.name()), Some(*variant));
            assert_eq!(T::from_name(&variant.name().to_uppercase()), None);
        }
    }

    #[test]
    fn each_variant_is_found_by_its_name() {
        check::<CacheMode>();
        check::<EngineKind>();
        check::<DetectZeroes>();
        check::<ImageLocking>();
        check::<DiskFormat>();
        check::<StableCopyMode>();
    }
}
