# Ruby, the stomp gem (Debian: ruby-stomp).
require 'base64'
require 'json'
require 'stomp'

$stdout.sync = true
VERSION = ENV.fetch('STOMP_VERSION')

def connect
  asked = VERSION == '1.0' ? {} : { 'accept-version' => VERSION, 'host' => ENV.fetch('STOMP_VHOST', 'localhost') }
  host = { login: ENV.fetch('STOMP_LOGIN'), passcode: ENV.fetch('STOMP_PASSCODE'),
           host: '127.0.0.1', port: Integer(ENV.fetch('STOMP_PORT')) }
  Stomp::Connection.new(hosts: [host], reliable: false, connect_headers: asked)
end

def frame_of(connection, command)
  frame = connection.receive
  abort "wanted #{command}, got #{frame.inspect}" unless frame && frame.command == command
  frame
end

def send_all
  connection = connect
  sent = 0
  $stdin.each_line do |line|
    entry = JSON.parse(line)
    headers = entry['headers'].merge('receipt' => "send-#{sent}")
    connection.publish(entry['destination'], Base64.decode64(entry['body']), headers)
    sent += 1
  end
  sent.times { frame_of(connection, 'RECEIPT') }
  connection.disconnect('receipt' => 'bye')
end

def receive(queue, count)
  connection = connect
  asked = { 'ack' => 'client-individual' }
  asked['id'] = 'inbox' unless VERSION == '1.0'
  connection.subscribe(queue, asked)
  count.times do
    frame = frame_of(connection, 'MESSAGE')
    puts JSON.generate('headers' => frame.headers.transform_values { |v| Array(v).first.dup.force_encoding('UTF-8') },
                       'body' => Base64.strict_encode64(frame.body))
    case VERSION
    when '1.2' then connection.ack(frame.headers['ack'])
    when '1.1' then connection.ack(frame.headers['message-id'], 'subscription' => 'inbox')
    else connection.ack(frame.headers['message-id'])
    end
  end
  connection.disconnect('receipt' => 'bye')
end

ARGV[0] == 'send' ? send_all : receive(ARGV[1], Integer(ARGV[2]))
