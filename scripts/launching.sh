# Sourced by the launchers: reads their options, the kdjax command after `--`, and says how they are used.
#
#   options="name zone"; required="name"; read_options "$@"
#
# sets $name, $zone (dashes become underscores), $dry_run to yes or no, and the array kdjax to the command's words.

launcher="$(basename "$0")"
dry_run=no

usage() {
  sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
}

read_options() {
  local option
  while [ "$#" -gt 0 ] && [ "$1" != -- ]; do
    option="${1#--}"
    if [ "$1" = --dry-run ]; then
      dry_run=yes
      shift
    elif [[ "$1" == --* && " $options " == *" $option "* ]]; then
      printf -v "${option//-/_}" %s "${2:?"$1 needs a value"}"
      shift 2
    else
      echo "$launcher: unknown option $1" >&2
      usage
    fi
  done
  if [ "$#" -lt 2 ]; then usage; fi
  for option in $required; do
    if [ -z "${!option}" ]; then usage; fi
  done
  shift
  kdjax=("$@")
  case " $* " in
    *" --run "* | *" --run="*) ;;
    *)
      echo "$launcher: name the run folder with --run, on a disk that all hosts see; it is needed to go on." >&2
      exit 2
      ;;
  esac
}
