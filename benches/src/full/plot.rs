//! The throughput tables as bars: a panel for each row, the longest bar of a panel as wide as it is. Plain SVG.

use std::fmt::Write;

use super::report::Table;

const WIDTH: usize = 860;
const NAME_WIDTH: usize = 150;
const BAR_WIDTH: f64 = 560.0;
const BAR_HEIGHT: usize = 16;
const TITLE_HEIGHT: usize = 30;

pub fn svg(tables: &[Table]) -> String {
    let height: usize = tables.iter().map(panel_height).sum();
    // Writing to a string cannot fail.
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = 0;
    for table in tables {
        panel(&mut svg, table, top);
        top += panel_height(table);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel_height(table: &Table) -> usize {
    TITLE_HEIGHT + table.cells.len() * BAR_HEIGHT + BAR_HEIGHT / 2
}

fn panel(svg: &mut String, table: &Table, top: usize) {
    let unit = table.row.unit;
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}, {} – {}</text>",
        top + TITLE_HEIGHT - 8,
        table.row.title,
        unit.name(),
        table.medium.title()
    );
    let figures = table.cells.iter().map(|cell| cell.median.figure(unit));
    let longest = figures.fold(f64::MIN_POSITIVE, f64::max);
    for (index, cell) in table.cells.iter().enumerate() {
        let figure = cell.median.figure(unit);
        let y = top + TITLE_HEIGHT + index * BAR_HEIGHT;
        let width = BAR_WIDTH * figure / longest;
        let colour = if cell.contender.starts_with("ours") {
            "#2b6cb0"
        } else {
            "#a0aec0"
        };
        let text_y = y + BAR_HEIGHT - 4;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAME_WIDTH}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text_y}\">{figure:.0}</text>",
            NAME_WIDTH - 6,
            cell.contender,
            y + 1,
            BAR_HEIGHT - 2,
            NAME_WIDTH as f64 + width + 6.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::table;
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_panel_and_the_others_are_in_proportion() {
        let svg = svg(&[table(&[("nbdkit", 400.0), ("ours, sync", 100.0)])]);
        assert!(svg.contains("width=\"560.0\""), "{svg}");
        assert!(svg.contains("width=\"140.0\""), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
    }
}
