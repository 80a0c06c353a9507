//! Changes of the control plane in entries of bounded size: however much a client subscribes to at once, the entry of
//! another waits for a short one at most.

/// Splits in order. Each piece holds at most [`PIECE_BYTES_MAX`] and [`PIECE_ITEMS_MAX`], or a single item.
pub(crate) fn pieces<T>(items: impl IntoIterator<Item = T>, bytes_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for item in items {
        let more = bytes_of(&item) + ITEM_OVERHEAD;
        if !piece.is_empty() && (bytes + more > PIECE_BYTES_MAX || piece.len() == PIECE_ITEMS_MAX) {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
        bytes += more;
        piece.push(item);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Does all of them, in order, also those behind one that fails.
///
/// # Errors
/// The first one's.
pub(crate) async fn each<T, E, F>(pieces: Vec<Vec<T>>, mut change: impl FnMut(Vec<T>) -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut result = Ok(());
    for piece in pieces {
        let changed = change(piece).await;
        result = result.and(changed);
    }
    result
}

/// Of an entry; with some room for what else stands in it.
const PIECE_BYTES_MAX: usize = 60 * 1024;
/// As many filters as a SUBSCRIBE has by default.
const PIECE_ITEMS_MAX: usize = 1_000;
/// Length, options and identifier of a subscription.
const ITEM_OVERHEAD: usize = 16;

#[cfg(test)]
mod tests {
    use lontra_storage::command::{MetaOp, encode_meta_ops};
    use lontra_storage::ids::Incarnation;

    use super::*;

    #[test]
    fn long_filters_and_many_filters_make_entries_of_64_kib_at_most() {
        let filters = |count: usize, length: usize| -> Vec<Box<str>> {
            let filter = |n: usize| format!("{n:0>length$}").into_boxed_str();
            (0..count).map(filter).collect()
        };
        for (count, length) in [(0, 1), (1, 1), (20_000, 5), (1_000, 200), (300, 60_000), (3, 65_535)] {
            let all = filters(count, length);
            let pieces = pieces(all.clone(), |filter| filter.len());
            for piece in &pieces {
                let operation = MetaOp::NodeRoutes {
                    node: u64::MAX,
                    incarnation: Incarnation(u64::MAX),
                    add: piece.clone(),
                    remove: Vec::new(),
                };
                let bytes = encode_meta_ops(&[operation]).len();
                assert!(bytes <= 64 * 1024 || piece.len() == 1, "{bytes} of {count} x {length}");
            }
            assert_eq!(pieces.concat(), all, "all of them, in order");
        }
        assert_eq!(pieces(filters(1_000, 20), |filter| filter.len()).len(), 1);
    }

    #[tokio::test]
    async fn a_piece_that_fails_does_not_keep_back_the_others() {
        let mut done = Vec::new();
        let change = |piece: Vec<u8>| {
            done.extend(&piece);
            std::future::ready(if piece == [2] { Err("the second") } else { Ok(()) })
        };
        let result = each(vec![vec![1], vec![2], vec![3]], change).await;
        assert_eq!((result, done), (Err("the second"), vec![1, 2, 3]));
    }
}
