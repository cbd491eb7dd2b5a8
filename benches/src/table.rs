//! A table of words, right-aligned but for the first column.

pub fn print(title: &str, head: &[&str], rows: &[Vec<String>]) {
    let columns = head.len();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column).map(|word| word.chars().count()))
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |words: &[String]| {
        let cells = words
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (word, width))| {
                if column == 0 {
                    format!("{word:<width$}")
                } else {
                    format!("{word:>width$}")
                }
            });
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    };
    println!("\n{title}");
    line(&head.iter().map(ToString::to_string).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}
