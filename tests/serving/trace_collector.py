"""An OpenTelemetry collector: takes what an OTLP exporter sends over gRPC, and keeps it."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class TraceCollector(service.TraceServiceServicer):
    """The spans that came so far, and where to send them."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: list[Span] = []

    def Export(self, request, context):  # noqa: N802 - gRPC's name
        """OTLP's one method."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self._spans.extend(scope.spans)
        return messages.ExportTraceServiceResponse()

    def spans_of(self, trace: str, seconds: float) -> list[Span]:
        """The spans of a trace, once there are any."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := [span for span in self._spans if span.trace_id.hex() == trace]:
                return found
            time.sleep(0.1)
        return []


@contextlib.contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    """One that runs on a free port of this machine."""
    collector = TraceCollector()
    server = grpc.server(ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
