"""Merge the two branches."""

revision = "s3"
down_revision = ("s2a", "s2b")


def upgrade() -> None:
    """Change nothing."""


def downgrade() -> None:
    """Change nothing."""
