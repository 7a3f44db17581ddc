//! Codes in words of 32 bits, the lowest bits first, on their way to rows of the engine's: two of four bits in a byte, or a byte each.

/// AWQ's order of the outputs in a word.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// GPTQ: `[K / n, N]` words of `n` columns as rows, a word's bytes side by side.
pub(super) fn transposed(words: &[u8], (rows, columns): (usize, usize)) -> Vec<u8> {
    let words = words.as_chunks::<4>().0;
    let mut out = vec![[0_u8; 4]; rows * columns];
    // Blocks, so that neither side walks through all of memory for each of its rows.
    const BLOCK: usize = 32;
    for first_row in (0..rows).step_by(BLOCK) {
        for column in 0..columns {
            for row in first_row..rows.min(first_row + BLOCK) {
                out[row * columns + column] = words[column * rows + row];
            }
        }
    }
    out.into_flattened()
}

/// GPTQ: `[K / n, N]` words of `n` columns, with column `order[k]` at place k. A line of words at a time, which all rows share.
pub(super) fn lines_in_order(words: &[u8], bits: u32, order: &[u32]) -> Vec<u8> {
    let in_word = 32 / bits as usize;
    let mask = (1_u32 << bits) - 1;
    let words = words.as_chunks::<4>().0;
    let width = words.len() / order.len().div_ceil(in_word);
    let mut out = vec![[0_u8; 4]; words.len()];
    for (line, columns) in out.chunks_mut(width.max(1)).zip(order.chunks(in_word)) {
        for (place, column) in columns.iter().enumerate() {
            let (at, shift) = (*column as usize / in_word, *column % in_word as u32 * bits);
            let to_shift = place as u32 * bits;
            for (to, word) in line.iter_mut().zip(&words[at * width..][..width]) {
                let code = u32::from_le_bytes(*word) >> shift & mask;
                *to = (u32::from_le_bytes(*to) | code << to_shift).to_le_bytes();
            }
        }
    }
    out.into_flattened()
}

/// Rows of codes, each with its column `order[k]` at place k.
pub(super) fn rows_in_order(codes: &[u8], bits: u32, order: &[u32]) -> Vec<u8> {
    let row_bytes = (order.len() * bits as usize).div_ceil(8);
    let in_byte = 8 / bits as usize;
    let mut out = Vec::with_capacity(codes.len());
    for row in codes.chunks_exact(row_bytes) {
        for columns in order.chunks(in_byte) {
            let code = |column: &u32| code_at(row, bits, *column as usize);
            let high = columns.get(1).map_or(0, |column| code(column) << 4);
            out.push(code(&columns[0]) | high);
        }
    }
    out
}

/// AWQ: `[K, N / 8]` words as rows of four bits.
pub(super) fn awq_rows(words: &[u8], (rows, columns): (usize, usize)) -> Vec<u8> {
    let (in_row, row_bytes) = (rows.div_ceil(8), columns.div_ceil(2));
    let words = words.as_chunks::<4>().0;
    let mut out = vec![0_u8; rows * row_bytes];
    for column in 0..columns {
        for (at, word) in words[column * in_row..][..in_row].iter().enumerate() {
            let word = u32::from_le_bytes(*word);
            for (nibble, output) in AWQ_ORDER.iter().enumerate() {
                let row = at * 8 + output;
                if row < rows {
                    let code = (word >> (4 * nibble) & 15) as u8;
                    out[row * row_bytes + column / 2] |= code << (column % 2 * 4);
                }
            }
        }
    }
    out
}

/// Number `index` of a line of codes of `bits` that are packed into words; `order` of them in a word.
pub(super) fn code_at(words: &[u8], bits: u32, index: usize) -> u8 {
    let in_byte = 8 / bits as usize;
    let byte = words[index / in_byte];
    if bits == 8 { byte } else { byte >> (index % in_byte * 4) & 15 }
}

/// Where AWQ keeps output `index` of a line.
pub(super) fn awq_index(index: usize) -> usize {
    let position = AWQ_ORDER.iter().position(|output| *output == index % 8);
    index / 8 * 8 + position.unwrap_or(0)
}

/// Words whose codes were kept one less, by taking one of each from the word as a whole: 0 borrows from the next. What was taken so comes
/// back so, as in GPTQModel, which `transformers` reads such files with.
pub(super) fn words_plus_one(words: &[u8], bits: u32) -> Vec<u8> {
    let ones: u32 = if bits == 8 { 0x0101_0101 } else { 0x1111_1111 };
    let plus_one = |word: &[u8; 4]| u32::from_le_bytes(*word).wrapping_add(ones).to_le_bytes();
    words.as_chunks().0.iter().flat_map(plus_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_order_whichever_way_they_are_packed() {
        let (rows, columns) = (3, 16);
        for bits in [4, 8] {
            let mask = (1_u32 << bits) - 1;
            let code = |row: u32, column: u32| (row * 91 + column * 37 + 5) & mask;
            let order: Vec<u32> = (0..columns).map(|k| (k * 7 + 3) % columns).collect();
            let in_word = 32 / bits;
            let packed = |of: &dyn Fn(u32) -> u32| -> Vec<u8> {
                let word = |row, at| {
                    let codes = (0..in_word).map(|i| code(row, of(at * in_word + i)) << (i * bits));
                    codes.sum::<u32>().to_le_bytes()
                };
                let words = columns / in_word;
                (0..rows).flat_map(|row| (0..words).flat_map(move |at| word(row, at))).collect()
            };
            let (stored, expected) = (packed(&|k| k), packed(&|k| order[k as usize]));
            assert_eq!(rows_in_order(&stored, bits, &order), expected);
            // [rows, words] as [words, rows], which is what GPTQ has.
            let words = (columns / in_word) as usize;
            let lines = transposed(&stored, (words, rows as usize));
            let ordered = lines_in_order(&lines, bits, &order);
            assert_eq!(transposed(&ordered, (rows as usize, words)), expected);
        }
    }

    #[test]
    fn zero_points_of_gptqs_first_format_come_back_whatever_they_are() {
        for (bits, ones, zeros) in
            [(4, 0x1111_1111, 0x0f80_7001_u32), (8, 0x0101_0101, 0x00ff_0080), (4, 0x1111_1111, 0)]
        {
            let stored = zeros.wrapping_sub(ones).to_le_bytes();
            assert_eq!(words_plus_one(&stored, bits), zeros.to_le_bytes());
        }
    }
}
