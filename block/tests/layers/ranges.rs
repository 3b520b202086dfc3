//! The ranges of a chain, and their comparison.

use block::{ByteOffset, ByteRange, CompareStep, LayerChain, LayerPiece};
use fixtures::Random;

use super::format::{BLOCK, LayerFile};
use super::model::{Block, Chain};

/// The maximal ranges of the blocks for which `of` has the level and the kind.
fn ranges(
    chain: &Chain,
    mut of: impl FnMut(usize) -> Option<(Option<usize>, bool)>,
) -> Vec<LayerPiece> {
    let mut found: Vec<LayerPiece> = Vec::new();
    for block in 0..chain.blocks() {
        let Some((level, data)) = of(block) else { continue };
        let start = (block * BLOCK) as u64;
        match found.last_mut() {
            Some(last)
                if last.range.start.0 + last.range.len == start
                    && (last.level, last.data) == (level, data) =>
            {
                last.range.len += BLOCK as u64;
            }
            _ => {
                let range = ByteRange { start: ByteOffset(start), len: BLOCK as u64 };
                found.push(LayerPiece { range, level, data });
            }
        }
    }
    found
}

/// Splits ranges into the blocks that they touch: a base may end within one.
fn by_block(pieces: &[LayerPiece]) -> Vec<(usize, Option<usize>, bool)> {
    let blocks = pieces.iter().flat_map(|piece| {
        let start = piece.range.start.0 as usize;
        let blocks = start / BLOCK..(start + piece.range.len as usize).div_ceil(BLOCK);
        blocks.map(|block| (block, piece.level, piece.data))
    });
    let mut blocks: Vec<_> = blocks.collect();
    blocks.dedup_by_key(|(block, ..)| *block);
    blocks
}

#[test]
fn the_map_and_the_changes_are_those_of_a_model() {
    for seed in 1..=40 {
        let random = &mut Random::new(seed);
        let depth = 1 + random.below(3);
        let model = Chain::new(random, depth, 80);
        let kind = |block| {
            let (level, content) = model.answer(0, block);
            (level, matches!(content, Block::Data(_)))
        };
        let chain = LayerChain::open(&model.path(0)).unwrap();
        assert_eq!(chain.size(), (model.blocks() * BLOCK) as u64);
        let pieces: Vec<_> = chain.pieces().map(Result::unwrap).collect();
        let mut at = 0;
        for piece in &pieces {
            assert_eq!(piece.range.start.0, at, "seed {seed}: no gap");
            at += piece.range.len;
        }
        assert_eq!(at, chain.size());
        let is_merged =
            |pair: &[LayerPiece]| (pair[0].level, pair[0].data) != (pair[1].level, pair[1].data);
        assert!(pieces.windows(2).all(is_merged), "seed {seed}");
        // Without the end of the base: nothing answers for the rest of its last block.
        let end = model.levels[model.base()].len();
        let expected = by_block(&ranges(&model, |block| Some(kind(block))));
        for (found, expected) in by_block(&pieces).into_iter().zip(&expected) {
            if found.0 + 1 == end && found.1 == Some(model.base()) {
                continue;
            }
            let (block, level, data) = *expected;
            // Beyond the base a level may answer, or none.
            assert_eq!(found, (block, level.or(found.1.filter(|_| block < end)), data), "{seed}");
        }
        for below in 1..=model.base() {
            let changes: Vec<_> = chain.changes(below).map(Result::unwrap).collect();
            let expected = ranges(&model, |block| {
                Some(kind(block)).filter(|(level, _)| level.is_some_and(|level| level < below))
            });
            assert_eq!(changes, expected, "seed {seed}, over {below}");
            let bytes: u64 = changes.iter().map(|piece| piece.range.len).sum();
            assert_eq!(chain.changed_bytes(below), bytes);
        }
    }
}

#[test]
fn a_comparison_finds_the_blocks_that_differ() {
    let mut equal = 0;
    for seed in 1..=40 {
        let random = &mut Random::new(seed);
        let depth = 1 + random.below(3);
        let model = Chain::new(random, depth, 80);
        let chain = LayerChain::open(&model.path(0)).unwrap();
        for below in 1..=model.base() {
            let (mut found, mut compared) = (Vec::new(), 0);
            let steps = chain.compare(below, |step| match step {
                CompareStep::Compared(bytes) => compared += bytes,
                CompareStep::Differs(piece) => found.push(piece),
            });
            steps.unwrap();
            let expected = ranges(&model, |block| {
                let (level, content) = model.answer(0, block);
                let is_changed = level.is_some_and(|level| level < below);
                let differs = model.content(0, block) != model.content(below, block);
                equal += usize::from(is_changed && !differs);
                (is_changed && differs).then_some((level, matches!(content, Block::Data(_))))
            });
            assert_eq!(found, expected, "seed {seed}, over {below}");
            assert_eq!(compared, chain.changed_bytes(below));
        }
    }
    assert!(equal > 100, "{equal}");
}

/// More than is compared at once.
#[test]
fn large_ranges_are_compared() {
    let random = &mut Random::new(7);
    let mut model = Chain::new(random, 0, 800);
    let path = model.folder.path().join("1.layer");
    block::create_layer(&path, &model.path(0), None).unwrap();
    let file = LayerFile::open(&path);
    let mut content = vec![Block::Data(1); model.blocks()];
    content[300..700].fill(Block::Hole);
    for (index, block) in (0..).zip(&content) {
        file.set_bit(index);
        if let Block::Data(byte) = block {
            file.write_data(index, &[*byte; BLOCK]);
        }
    }
    model.levels.insert(0, content);
    let chain = LayerChain::open(&path).unwrap();
    let mut found = Vec::new();
    let compared = chain.compare(1, |step| {
        if let CompareStep::Differs(piece) = step {
            found.push(piece);
        }
    });
    compared.unwrap();
    let differs = |block| model.content(0, block) != model.content(1, block);
    let expected =
        ranges(&model, |block| differs(block).then_some((Some(0), !(300..700).contains(&block))));
    assert_eq!(found, expected);
}

#[test]
fn a_level_is_found_by_its_file() {
    let model = Chain::new(&mut Random::new(3), 2, 8);
    let chain = LayerChain::open(&model.path(0)).unwrap();
    assert_eq!(chain.level_of(&model.path(1)).unwrap(), 1);
    assert_eq!(chain.level_of(&model.path(2)).unwrap(), 2);
    let link = model.folder.path().join("link");
    std::os::unix::fs::symlink(model.path(2), &link).unwrap();
    assert_eq!(chain.level_of(&link).unwrap(), 2);
    let itself = chain.level_of(&model.path(0)).unwrap_err().to_string();
    assert!(itself.contains("does not stand on it"), "{itself}");
}

/// Blocks beyond the ends of two levels are one range.
#[test]
fn ranges_that_levels_cut_are_merged() {
    let (_folder, at) = super::check::chain();
    for (path, base, blocks) in [("3.layer", "2.layer", 300), ("4.layer", "3.layer", 400)] {
        block::create_layer(&at(path), &at(base), Some(blocks * BLOCK as u64)).unwrap();
    }
    let chain = LayerChain::open(&at("4.layer")).unwrap();
    let pieces: Vec<_> = chain.pieces().map(Result::unwrap).collect();
    let range = |first: u64, end: u64, level, data| {
        let start = ByteOffset(first * BLOCK as u64);
        LayerPiece { range: ByteRange { start, len: (end - first) * BLOCK as u64 }, level, data }
    };
    assert_eq!(pieces, [range(0, 256, Some(4), true), range(256, 400, None, false)]);
}

/// A disk over another base is garbage: its ranges are not shown.
#[test]
fn a_chain_that_cannot_be_used_is_refused() {
    let (_folder, at) = super::check::chain();
    let refused = |reason: &str| {
        for open in [LayerChain::open, LayerChain::lock] {
            let error = open(&at("2.layer")).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    };
    let [middle, top] = ["1.layer", "2.layer"].map(|name| LayerFile::open(&at(name)));
    let (mut small, mut above) = (middle.slot.clone(), top.slot.clone());
    small[56..64].copy_from_slice(&4096_u64.to_le_bytes());
    middle.write_slot(0, &small);
    above[88..96].copy_from_slice(&4096_u64.to_le_bytes());
    top.write_slot(1, &above);
    refused("smaller than that of its base");
    middle.write_slot(0, &middle.slot);
    top.write_slot(1, &top.slot);
    LayerChain::open(&at("2.layer")).unwrap();
    std::fs::write(at("base.img"), vec![1; 1 << 20]).unwrap();
    refused("has changed since the layer was made");
}
