use Digest::SHA;
my %h;
open my $text, "<", "text" or die;
while (<$text>) { $h{$1}++ while /([a-z]+)/g }
print "$_ $h{$_}\n" for sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h;
printf "%.15g %.15g %s\n", exp(1), atan2(1, 3), join ",", unpack "C*", pack "d", 0.1;
print Digest::SHA::sha256_hex(join "", sort keys %h), "\n";
print 2**53 + 1, " ", 7**20, " ", sprintf("%.20f", 1 / 3), "\n";
