"""The flags of `serve` that say which images are taken."""

from argparse import ArgumentParser, Namespace

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_fetch import DEFAULT_RULES, FetchRules
from qwen_vqa.plugin.images.image_limits import ImageLimits

MIB = 2**20


def add_image_flags(parser: ArgumentParser) -> None:
    """Limits of size and time, and the hosts that may be asked; defaults are `FetchRules`'."""
    limits = DEFAULT_RULES.limits
    parser.add_argument("--max-image-mb", type=float, default=limits.max_bytes / MIB, help="an image's file, in MiB")
    parser.add_argument("--max-image-pixels", type=int, default=limits.max_pixels, help="an image's width x height")
    parser.add_argument(
        "--trusted-image-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="fetch from it also if its address is private; any port, or this one; may be repeated",
    )
    parser.add_argument(
        "--image-fetch-seconds", type=float, default=DEFAULT_RULES.total_seconds, help="for fetching one image"
    )
    parser.add_argument(
        "--image-redirects", type=int, default=DEFAULT_RULES.max_redirects, help="redirects followed for one image"
    )
    parser.add_argument(
        "--image-user-agent", default=DEFAULT_RULES.user_agent, help="what hosts of images are told who asks"
    )


def image_rules(args: Namespace) -> FetchRules:
    """The rules that the flags ask for.

    Raises:
        UserError: a number, host or user agent that cannot be, or clients would be given this machine's files.
    """
    if args.allowed_local_media_path:
        raise UserError(
            "--allowed-local-media-path is not supported: clients would read files of this machine. Leave it out; "
            "images are sent as data URLs or fetched from a --trusted-image-host."
        )
    return FetchRules(
        ImageLimits(int(args.max_image_mb * MIB), args.max_image_pixels),
        allowed_hosts=frozenset(args.allowed_media_domains or ()),
        trusted_hosts=frozenset(args.trusted_image_host),
        max_redirects=args.image_redirects,
        total_seconds=args.image_fetch_seconds,
        user_agent=args.image_user_agent,
    )
