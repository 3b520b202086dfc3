//! The result of `bulkhead disk map`: a drawing whose cells are darker the more of them holds data.
//! Pure, except for the width of the terminal.

use block::{ByteRange, Extent};
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::config::human_size;

const DATA: Style = AnsiColor::Cyan.on_default();
const DIM: Style = Style::new().dimmed();
/// Lines of the drawing.
const ROWS: u64 = 8;
/// Without a terminal.
const COLUMNS: u16 = 80;
/// From no data to only data.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// The drawing, `width` columns wide, with the offset before each line.
pub(super) fn draw(size: u64, extents: &[Extent], width: Option<u16>) -> String {
    let terminal = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
    let terminal = terminal.map(|size| size.ws_col).filter(|columns| *columns > 0);
    let label_width = human_size(size).len().max(10);
    let width = usize::from(width.or(terminal).unwrap_or(COLUMNS));
    let columns = width.saturating_sub(label_width + 4).max(4);
    let shares = shares(size, extents, columns as u64 * ROWS);
    let cell = size.div_ceil(shares.len().max(1) as u64);

    let mut out = String::new();
    for (row, cells) in shares.chunks(columns).enumerate() {
        let offset = human_size((row * columns) as u64 * cell);
        let offset = if row == 0 { "0".to_owned() } else { offset };
        let cells: String = cells.iter().map(|share| shade(*share)).collect();
        out += &format!("  {DIM}{offset:>label_width$}{DIM:#}  {DATA}{cells}{DATA:#}\n");
    }
    let data: u64 = data(extents).map(|range| range.len).sum();
    out + &format!(
        "\n  {} of {} hold data ({}); a block is {}: {} no data, {} only data\n",
        human_size(data),
        human_size(size),
        percent(data, size),
        human_size(cell),
        SHADES[0],
        SHADES[4],
    )
}

/// The extents as JSON.
pub(super) fn json(size: u64, extents: &[Extent]) -> String {
    let extents = extents.iter().map(|extent| {
        let Extent { range: ByteRange { start, len }, data } = extent;
        json!({ "start": start.0, "bytes": len, "data": data })
    });
    let answer = json!({ "size_bytes": size, "extents": extents.collect::<Value>() });
    format!("{answer:#}\n")
}

/// The result for a block device, which does not report its extents.
pub(super) fn unknown(size: u64, allocated: Option<u64>, json: bool) -> String {
    if json {
        let answer = json!({ "size_bytes": size, "extents": null, "allocated_bytes": allocated });
        return format!("{answer:#}\n");
    }
    let size = human_size(size);
    let takes = match allocated {
        Some(bytes) => format!("; it takes {} on the host", human_size(bytes)),
        None => String::new(),
    };
    format!("  A block device does not report which parts of its {size} hold data{takes}.\n")
}

/// `part` of `whole` in percent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    match tenths {
        0 if part > 0 => "under 0.1 %".to_owned(),
        0..100 => format!("{}.{} %", tenths / 10, tenths % 10),
        _ => format!("{} %", tenths / 10),
    }
}

fn data(extents: &[Extent]) -> impl Iterator<Item = ByteRange> + '_ {
    extents.iter().filter(|extent| extent.data).map(|extent| extent.range)
}

/// The share of data in each of at most `cells_max` equal cells, in thousandths.
fn shares(size: u64, extents: &[Extent], cells_max: u64) -> Vec<u16> {
    // No cell is smaller than a sector.
    let cell = size.div_ceil(cells_max.max(1)).max(512);
    let count = usize::try_from(size.div_ceil(cell)).unwrap_or(0);
    let mut filled = vec![0_u64; count];
    for ByteRange { start, len } in data(extents) {
        let (mut at, end) = (start.0, start.0 + len);
        while at < end {
            let index = at / cell;
            let next = ((index + 1) * cell).min(end);
            let counter = usize::try_from(index).ok().and_then(|index| filled.get_mut(index));
            if let Some(bytes) = counter {
                *bytes += next - at;
            }
            at = next;
        }
    }
    let share = |(index, bytes)| {
        let whole = cell.min(size - index as u64 * cell);
        // One byte of data is not shown as none.
        let thousandths = u128::from(bytes) * 1000 / u128::from(whole);
        u16::try_from(thousandths).unwrap_or(1000).max(u16::from(bytes > 0))
    };
    filled.into_iter().enumerate().map(share).collect()
}

fn shade(thousandths: u16) -> char {
    let index = match thousandths {
        0 => 0,
        1..334 => 1,
        334..667 => 2,
        667..1000 => 3,
        _ => 4,
    };
    SHADES.get(index).copied().unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use block::ByteOffset;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn extent(start: u64, len: u64, data: bool) -> Extent {
        Extent { range: ByteRange { start: ByteOffset(start), len }, data }
    }

    #[test]
    fn each_cell_shows_its_share() {
        let extents =
            [extent(0, 3 * MIB, true), extent(3 * MIB, 4 * MIB, false), extent(7 * MIB, 512, true)];
        assert_eq!(shares(8 * MIB, &extents, 4), [1000, 500, 0, 1]);
        let shades: String = [0, 1, 500, 999, 1000].map(shade).iter().collect();
        assert_eq!(shades, "·░▒▓█");
    }

    #[test]
    fn a_cell_is_at_least_a_sector() {
        assert_eq!(shares(1024, &[extent(512, 512, true)], 400), [0, 1000]);
    }

    #[test]
    fn the_drawing_fits_the_width() {
        let text = draw(64 * MIB, &[extent(0, 32 * MIB, true)], Some(40));
        let text = anstream::adapter::strip_str(&text).to_string();
        let rows: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert!(rows.iter().all(|row| row.chars().count() <= 40), "{text}");
        assert_eq!(rows.len() as u64, ROWS, "{text}");
        assert!(rows[0].ends_with('█') && rows[7].ends_with('·'), "{text}");
        assert!(text.contains("32 MiB of 64 MiB hold data (50 %)"), "{text}");
    }

    #[test]
    fn percentages_are_rounded_down() {
        assert_eq!(percent(0, 10), "0.0 %");
        assert_eq!(percent(1, 1 << 40), "under 0.1 %");
        assert_eq!(percent(25, 1000), "2.5 %");
        assert_eq!(percent(1 << 40, 1 << 40), "100 %");
    }
}
