"""Which views an image has, and how many tokens that makes: what counts them and what puts features in their places."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class ViewLayout:
    """The view of the whole image, and a grid of tiles behind it; without tiles all numbers are 0.

    The features of all tiles together are one grid; of it the rows and columns that show nothing are left out, and a
    learned embedding, `image_newline`, ends each row.

    Attributes:
        rows, columns: of tiles.
        first_row, kept_rows, first_column, kept_columns: of features, in the grid of all tiles.
    """

    rows: int = 0
    columns: int = 0
    first_row: int = 0
    kept_rows: int = 0
    first_column: int = 0
    kept_columns: int = 0

    @classmethod
    def whole_tiles(cls, rows: int, columns: int, side: int) -> "ViewLayout":
        """All features of so many tiles, of `side` x `side` features each."""
        return cls(rows, columns, 0, rows * side, 0, columns * side)

    @property
    def num_views(self) -> int:
        """The whole, and the tiles."""
        return 1 + self.rows * self.columns

    def num_tokens(self, tokens_per_view: int) -> int:
        """Prompt tokens of the image."""
        return tokens_per_view + self.kept_rows * (self.kept_columns + 1 if self.rows else 0)

    def numbers(self) -> tuple[int, ...]:
        """For a row of a tensor; `ViewLayout(*row)` reads it."""
        return astuple(self)


WHOLE = ViewLayout()
