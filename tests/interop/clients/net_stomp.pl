# Perl, Net::Stomp (Debian: libnet-stomp-perl). It knows no escapes and no versions; the headers of STOMP 1.2 are
# given by hand.
use strict;
use warnings;
use JSON::PP;
use MIME::Base64;
use Net::Stomp;

$| = 1;
my $json = JSON::PP->new->canonical;    # strings stay the bytes that they are
my $modern = $ENV{STOMP_VERSION} ne '1.0';

sub connected {
    my $stomp = Net::Stomp->new({ hostname => '127.0.0.1', port => $ENV{STOMP_PORT}, timeout => 60 });
    my %asked = (login => $ENV{STOMP_LOGIN}, passcode => $ENV{STOMP_PASSCODE});
    %asked = (%asked, 'accept-version' => $ENV{STOMP_VERSION}, host => $ENV{STOMP_VHOST} // 'localhost') if $modern;
    my $frame = $stomp->connect(\%asked);
    die "no CONNECTED\n" unless $frame && $frame->command eq 'CONNECTED';
    return $stomp;
}

sub send_all {
    my $stomp = connected();
    while (my $line = <STDIN>) {
        my $entry = $json->decode($line);
        my %headers = %{ $entry->{headers} };
        utf8::encode($_) for values %headers;
        my $body = decode_base64($entry->{body});
        $stomp->send_with_receipt(
            { %headers, destination => $entry->{destination}, body => $body, bytes_message => 1 })
            or die "no receipt\n";
    }
    $stomp->disconnect;
}

sub receive {
    my ($queue, $count) = @_;
    my $stomp = connected();
    $stomp->subscribe(
        { destination => $queue, ack => 'client-individual', $modern ? (id => 'inbox') : () });
    for (1 .. $count) {
        my $frame = $stomp->receive_frame or die "the broker closed the connection\n";
        die 'wanted MESSAGE, got ' . $frame->as_string . "\n" unless $frame->command eq 'MESSAGE';
        my %headers = %{ $frame->headers };
        print $json->encode({ headers => \%headers, body => encode_base64($frame->body, '') }), "\n";
        my %named = $modern ? (id => $headers{ack}, subscription => $headers{subscription}) : ();
        $stomp->ack({ frame => $frame, %named });
    }
    $stomp->disconnect;
}

$ARGV[0] eq 'send' ? send_all() : receive($ARGV[1], $ARGV[2]);
