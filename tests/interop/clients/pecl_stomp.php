<?php
// PHP, the PECL extension stomp (Debian: php-stomp). Its ACK echoes every header of the MESSAGE.
function connected(): Stomp
{
    $asked = ['accept-version' => getenv('STOMP_VERSION'), 'host' => getenv('STOMP_VHOST') ?: 'localhost'];
    $asked = getenv('STOMP_VERSION') === '1.0' ? [] : $asked;
    $uri = 'tcp://127.0.0.1:' . getenv('STOMP_PORT');
    $stomp = new Stomp($uri, getenv('STOMP_LOGIN'), getenv('STOMP_PASSCODE'), $asked);
    $stomp->setReadTimeout(60);
    return $stomp;
}

function fail(string $text): never
{
    fwrite(STDERR, $text . "\n");
    exit(1);
}

function send_all(): void
{
    $stomp = connected();
    $sent = 0;
    while (($line = fgets(STDIN)) !== false) {
        $entry = json_decode($line, true);
        $headers = $entry['headers'] + ['receipt' => 'send-' . $sent++];
        if (!$stomp->send($entry['destination'], base64_decode($entry['body']), $headers)) {
            fail('no receipt: ' . $stomp->error());
        }
    }
}

function receive(string $queue, int $count): void
{
    $stomp = connected();
    $stomp->subscribe($queue, ['ack' => 'client-individual', 'id' => 'inbox', 'receipt' => 'subscribed']);
    for ($i = 0; $i < $count; $i++) {
        $frame = $stomp->readFrame();
        if ($frame === false || $frame->command !== 'MESSAGE') {
            fail('wanted MESSAGE, got ' . var_export($frame, true) . ' ' . $stomp->error());
        }
        echo json_encode(['headers' => $frame->headers, 'body' => base64_encode($frame->body ?? '')]), "\n";
        $last = $i === $count - 1 ? ['receipt' => 'last'] : [];
        if (!$stomp->ack($frame, $last)) {
            fail('ACK refused: ' . $stomp->error());
        }
    }
}

$argv[1] === 'send' ? send_all() : receive($argv[2], (int) $argv[3]);
