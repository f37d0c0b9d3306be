"""Decoding beside the event loop: callers in turn, and no work for a client who has gone."""

import asyncio
import threading
import time

import pytest

from qwen_vqa.plugin.images.image_limits import ImageLimits
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.serving.requests.decoders import Decoders, DecodingEndedError
from tests.hostile_images import jpeg_of_many_scans


def test_callers_take_turns():
    decoders, order = Decoders(1), []

    def work(name: str):
        def decode(going_on) -> None:
            order.append(name)
            time.sleep(0.01)

        return decode

    async def main() -> None:
        flood = [decoders.run("flood", work(f"flood {index}")) for index in range(8)]
        await asyncio.gather(*flood, decoders.run("one", work("one")))

    asyncio.run(main())
    assert order.index("one") <= 2 and len(order) == 9


def test_a_picture_whose_client_has_gone_is_not_decoded_to_its_end():
    decoders, data = Decoders(1), jpeg_of_many_scans(3000, 80)
    pieces: list[int] = []  # read of each picture
    begun, gone = threading.Event(), threading.Event()

    def decode(going_on) -> None:
        pieces.append(0)

        def next_piece() -> None:
            pieces[-1] += 1
            if len(pieces) == 2 and pieces[-1] == 5:
                begun.set()
                assert gone.wait(60)
            going_on()

        load_image(data, going_on=next_piece)

    async def main() -> None:
        await decoders.run("whole", decode)
        task = asyncio.create_task(decoders.run("gone", decode))
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gone.set()
        await decoders.run("next", lambda going_on: None)  # begins once the thread is free

    asyncio.run(main())
    assert pieces[0] > 10 and pieces[1:] == [5], pieces


def test_who_waits_for_a_turn_and_goes_leaves_no_place_taken():
    decoders, holding = Decoders(1), threading.Event()

    async def main() -> None:
        first = asyncio.create_task(decoders.run("a", lambda going_on: holding.wait()))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(decoders.run("b", lambda going_on: pytest.fail("nobody waits for it")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        holding.set()
        await first
        assert await asyncio.wait_for(decoders.run("c", lambda going_on: "decoded"), 10) == "decoded"

    asyncio.run(main())


def test_a_picture_that_takes_too_long_is_ended():
    decoders = Decoders(1, longest_seconds=0.02)
    limits = ImageLimits(max_pixels=50_000_000)

    async def main() -> None:
        await decoders.run("a", lambda going_on: load_image(jpeg_of_many_scans(4000, 40), "image", limits, going_on))

    with pytest.raises(DecodingEndedError, match=r"longer than 0\.02 s"):
        asyncio.run(main())
