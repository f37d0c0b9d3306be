"""What `qwen-vqa serve --help` prints; all of vLLM's options are behind `--help=all`."""

HELP = """\
usage: qwen-vqa serve [CHECKPOINT] [options] [any option of vLLM's server]

Serve a checkpoint behind the OpenAI API: a folder, or a hub id (ORG/MODEL; HF_TOKEN for a private one, HF_HUB_OFFLINE=1
for the hub's cache alone). Without CHECKPOINT: the bundled demo model.
Adapters in CHECKPOINT/adapters are served as models by their folders' names.

options:
  --host HOST            address to listen on (default: 127.0.0.1; 0.0.0.0 for everybody, with keys)
  --port PORT            (default: 8000)
  --revision NAME        of a hub id: its branch, tag or commit (default: the repository's main branch)
  --served-model-name N  the model name clients send (default: the folder's name, or the hub id ORG/MODEL; the demo:
                         qwen-vqa-demo)
  --max-model-len N      longest prompt and answer together, in tokens (default: the language model's limit)
  --dtype DTYPE          auto, bfloat16, float16 or float32, of the language model (default: auto, the checkpoint's own;
                         on a CPU without arithmetic of that type float32, where there is the memory)
  --output-layer O       on a CPU, where input and output embeddings are the same numbers: packed (faster where several
                         answers are decoded at once), shared (holds them once; default with 4-bit checkpoints) or mixed
                         (packed, but up to 4 answers are decoded from the 16-bit input side; default otherwise)
  --linear-layers L      on a CPU that serves a 16-bit checkpoint in float32: packed (in float32), or mixed (that, and
                         the 16 bits beside it, from which up to 4 answers are decoded faster; default where that takes
                         no more than half of the memory that the weights leave)
  --max-num-batched-tokens N  tokens of one step of the engine, of prompts and answers together (default: on a CPU 512)
  --lora-modules N=PATH  more adapters, beside those in the folder
  --max-adapters N       adapters held at once, where --open-routes adapters lets an admin's key load and unload them:
                         POST /v1/load_lora_adapter, /v1/unload_lora_adapter (default: 4, or those there at the start)
  --adapters-file FILE   keep what was loaded and unloaded so in a file, and begin the next start with it (JSON; the
                         server writes it, and need not find it there)
  --max-lora-rank N      largest rank of an adapter (default: 16, with --open-routes adapters 64, or more if an adapter
                         that is there at the start has more)
  --max-image-mb N       largest file of an image, in MiB (default: 20)
  --max-image-pixels N   largest width x height of an image (default: 50000000)
  --allowed-media-domains H ...    fetch images from these hosts only (default: from any public one)
  --trusted-image-host HOST[:PORT] fetch from it also if its address is private; may be repeated (default: none)
  --image-fetch-seconds N          for fetching one image (default: 10)
  --image-redirects N              redirects followed for one image (default: 3)
  --image-user-agent TEXT          who asks, as hosts of images are told (default: qwen-vqa/VERSION); some, such as
                                   Wikimedia's, want a contact: "my-service/1.0 (https://example.org; me@example.org)"
  --tool-call-parser P   how tool calls are read out of an answer (default: hermes, with --enable-auto-tool-choice,
                         where the checkpoint's template and tokenizer are Qwen's; else none)
  --tool-strict-level L  how far calls are held to the tools' schemas: auto (those with "strict": true), function,
                         parameter (default: parameter, all of them)
  --drain-seconds N      told to stop, what runs has so long to finish (default: 25; Kubernetes kills after 30)
  --keep-alive-seconds N an idle connection is kept so long (default: 75; longer than a load balancer in front of it)
  --connections N        connections at once, of all addresses; fewer where few files may be open (default: 4096)
  --slow-connections-per-address N  of one address, connections that take longer than a second for a request's headers;
                         at most 10 s in any case (default: 64; 0: any number)
  --log-format FORMAT    text or json, one object a line (default: text); never prompts, pictures or keys
  --api-servers N        processes that answer requests; with limits, 2 or more need --limits-storage (default: 1)
  --no-restart           end with status 1 when the engine dies (default: start it again)
  -v, --verbose          say what is chosen for this machine, and why; and what the checkpoint makes of a request
  --verify               open the routes through which `qwen-vqa verify` sees pixels and features
  --help=all             every option of vLLM's server

who may call (every route asks for a key, where there are keys; /, /health and /ready alone do not):
  --api-key KEY ...      keys that clients may send (default: VLLM_API_KEY, or none)
  --api-keys-file FILE   named keys with limits of their own; read again when it changes (see below)
  --open-routes GROUPS   routes that are off otherwise, with commas between: adapters, batch, development, docs,
                         profiling, sagemaker, scale-out, scaling, scoring, tokenizer-info, verify
  --allowed-origins LIST origins whose web pages may call, as JSON: '["https://example.org"]' (default: none)

how much (a caller is a key, or an address where there are no keys; 0 is no limit):
  --requests-per-minute N      requests of one caller in a minute (default: 0)
  --image-tokens-per-minute N  image tokens of one caller in a minute (default: 0)
  --running-per-caller N       requests of one caller that run at once (default: 0)
  --running N                  requests that run at once, of all callers (default: 256)
  --waiting-per-caller N       requests of one caller that wait for a turn (default: 64; 0: none waits)
  --waiting N                  requests that wait for a turn, of all callers (default: 1024; 0: none waits)
  --wait-seconds N             longest wait (default: 60)
  --max-body-mb N              longest body of a request, in MiB (default: 32)
  --max-images N               images in one request (default: 32)
  --max-n N                    answers that one request asks for (default: 16)
  --max-output-tokens N        tokens of one answer, also where a request names none (default: 0)
  --limits-storage URL         count each caller's limits in a Redis or Valkey database, which several servers share:
                               redis://[:PASSWORD@]HOST:PORT[/DATABASE], rediss://, redis+unix://, valkey://
                               (default: QWEN_VQA_LIMITS_STORAGE, or this process' memory)
  --limits-unavailable X       while it does not answer: refuse (503) or allow, uncounted (default: refuse)

A keys file is JSON. A key stands in it as "key" or, hashed, as "sha256"; what else is in an entry is optional:
  {"keys": [{"name": "alice", "key": "AT-LEAST-16-CHARACTERS", "admin": false,
             "requests_per_minute": 60, "image_tokens_per_minute": 30000, "running": 4}]}

vLLM's own log is kept to errors; VLLM_LOGGING_LEVEL=INFO shows all of it.

examples:
  qwen-vqa serve                                   the demo at http://localhost:8000/v1
  qwen-vqa serve my-model --port 9000
  qwen-vqa serve my-name/my-model --revision v1    from the hub, under that name
  qwen-vqa serve my-model --host 0.0.0.0 --api-key "$KEY" --max-model-len 4096
"""
