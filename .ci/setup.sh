# shellcheck shell=sh
# What a machine needs before samara can be built and run: cargo, a C linker for it, and a Vulkan
# loader with a driver. Sourced by ./demo and ./check. What is already there is left alone, so a
# second run asks the package manager nothing.

say() { printf "%s\n" "$@" >&2; }

stop() {
  say "error: $*"
  exit 1
}

# Shows what a command prints only when it fails.
quietly() {
  printed=$("$@" 2>&1 </dev/null) || {
    code=$?
    say "$printed"
    return "$code"
  }
}

can_be_root() {
  [ "$(id -u)" -eq 0 ] && return
  # Without a terminal nobody can type a password.
  command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# What is here already ---------------------------------------------------------------------------

has_vulkan_loader() {
  PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1 ' && return
  # musl's ldconfig lists nothing; Nix has libraries only on LD_LIBRARY_PATH.
  printf '%s\n' "/usr/lib:/usr/local/lib:${LD_LIBRARY_PATH:-}" | tr : '\n' | while IFS= read -r folder; do
    [ ! -e "${folder:-/nowhere}/libvulkan.so.1" ] || echo found
  done | grep -q found
}

# Prints the manifest of every Vulkan driver, from the directories that the loader searches.
vulkan_drivers() {
  if [ -n "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" ]; then
    printf '%s\n' "${VK_DRIVER_FILES:-$VK_ICD_FILENAMES}"
  else
    echo "${XDG_CONFIG_HOME:-${HOME:-}/.config}:${XDG_CONFIG_DIRS:-/etc/xdg}:/usr/local/etc:/etc:${XDG_DATA_HOME:-${HOME:-}/.local/share}:${XDG_DATA_DIRS:-/usr/local/share:/usr/share}"
  fi | tr : '\n' | while IFS= read -r place; do
    for manifest in "$place" "$place"/*.json "$place"/vulkan/icd.d/*.json; do
      [ ! -f "$manifest" ] || printf '%s\n' "$manifest"
    done
  done
}

has_vulkan() { has_vulkan_loader && [ -n "$(vulkan_drivers)" ]; }

on_bookworm() {
  # shellcheck source=/dev/null
  (. /etc/os-release && [ "${ID:-}:${VERSION_CODENAME:-}" = debian:bookworm ]) 2>/dev/null
}

# True on a bookworm machine without a GPU whose Mesa is the release's own: its CPU driver takes five
# times as long for a token as Mesa 25's.
has_slow_lavapipe() {
  on_bookworm || return
  version=$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null) || return
  dpkg --compare-versions "$version" lt 25 || return
  for node in /dev/dri/renderD*; do [ ! -e "$node" ] || return; done
  ! vulkan_drivers | while IFS= read -r manifest; do
    dpkg -S "$manifest" 2>/dev/null | grep '^mesa-vulkan-drivers' >/dev/null || echo another
  done | grep -q another
}

# Installing -------------------------------------------------------------------------------------

package_manager() {
  for manager in apt-get dnf pacman zypper apk; do
    if command -v "$manager" >/dev/null; then
      echo "$manager"
      return
    fi
  done
  return 1
}

# Prints the packages that hold $2, `linker`, `vulkan` or a tool of tools.sh, for the package manager $1.
packages() {
  case $1:$2 in
    apt-get:linker) echo gcc libc6-dev ;;
    apt-get:vulkan) echo mesa-vulkan-drivers libvulkan1 ;;
    dnf:vulkan) echo mesa-vulkan-drivers vulkan-loader ;;
    pacman:vulkan) echo vulkan-swrast vulkan-icd-loader ;;
    zypper:vulkan) echo libvulkan_lvp libvulkan1 ;;
    apk:linker) echo gcc musl-dev ;;
    apk:vulkan) echo mesa-vulkan-swrast vulkan-loader ;;
    *:linker) echo gcc ;;
    *:spirv_val) echo spirv-tools ;;
    *:node) echo nodejs npm ;;
    pacman:pip) echo python-pip ;;
    apk:pip) echo py3-pip ;;
    *:pip) echo python3-pip ;;
    apt-get:swiftshader | dnf:swiftshader) echo chromium-common ;;
    apk:swiftshader) echo chromium-swiftshader ;;
    *:swiftshader) echo chromium ;;
    apt-get:validation_layer | zypper:validation_layer) echo vulkan-validationlayers ;;
    *:validation_layer) echo vulkan-validation-layers ;;
  esac
}

# Prints the command that installs with the package manager $1.
install_command() {
  case $1 in
    apt-get) echo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ;;
    dnf) echo dnf install -y ;;
    pacman) echo pacman -Sy --needed --noconfirm ;;
    zypper) echo zypper --non-interactive install ;;
    apk) echo apk add ;;
  esac
}

backports=/etc/apt/sources.list.d/samara-backports.sources

# Prints the fields of every package index of the suite $1 that has been fetched from Debian.
debian_index() {
  # shellcheck disable=SC2016 # apt-get fills these in, not the shell
  apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(SOURCESENTRY)' \
    'Created-By: Packages' "Release: $1" 2>/dev/null | grep '^Debian'
}

# Prints the machine's own source of bookworm, as a deb822 stanza for bookworm-backports.
backports_stanza() {
  index=$(debian_index bookworm | head -n 1)
  entry=${index##*|}
  uri=${index#*|}
  uri=${uri%%|*}
  case $entry in
    '') ;;
    *.sources:*)
      # The whole stanza but its suites: a key, a mirror list or an option in it stays in force.
      awk -v uri="${uri%/}" '
        BEGIN { RS = ""; FS = "\n" }
        !index($0, uri) || !/(^|\n)[Ss]uites:([^\n]*[ \t])?bookworm([ \t\n]|$)/ { next }
        /(^|\n)[Ee]nabled: *no/ { next }
        {
          for (i = 1; i <= NF; i++)
            if ($i !~ /^#/) print ($i ~ /^[Ss]uites:/ ? "Suites: bookworm-backports" : $i)
          exit
        }' "${entry%:*}"
      ;;
    *)
      # One line, `deb [arch=amd64 signed-by=FILE] URI bookworm main`.
      awk -v number="${entry##*:}" '
        NR == number {
          sub(/#.*/, "")
          options = ""
          if (match($0, /\[[^]]*\]/)) {
            options = substr($0, RSTART + 1, RLENGTH - 2)
            $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
          }
          print "Types: deb\nURIs: " $2 "\nSuites: bookworm-backports\nComponents: main"
          count = split(options, option, " ")
          for (i = 1; i <= count; i++) {
            name = value = option[i]
            sub(/=.*/, "", name)
            sub(/^[^=]*=/, "", value)
            gsub(/,/, " ", value)
            print (name == "arch" ? "architectures" : name) ": " value
          }
        }' "${entry%:*}"
      ;;
  esac
}

# Makes bookworm-backports available; false, with everything undone, if that fails.
add_backports() {
  debian_index bookworm-backports >/dev/null && return
  stanza=$(backports_stanza)
  [ -n "$stanza" ] || return
  printf '%s\n' "# Mesa for samara; written by its set-up." "$stanza" | as_root tee "$backports" >/dev/null || return
  # Only this source is fetched, so that a broken one elsewhere does no harm.
  as_root apt-get -qq update -o Dir::Etc::SourceList="$backports" -o Dir::Etc::SourceParts=- \
    -o APT::Get::List-Cleanup=0 </dev/null >/dev/null 2>&1 || :
  debian_index bookworm-backports >/dev/null && return
  as_root rm -f "$backports"
  return 1
}

# Refreshes the lists of apt-get, once.
refresh_lists() {
  [ -z "${refreshed:-}" ] || return 0
  refreshed=yes
  say "Set-up: refreshing the package lists."
  quietly as_root apt-get -qq update || say "warning: a package source is broken; going on with the others."
}

# Installs with the package manager $1 what the other arguments name, as `packages` knows it.
install() {
  manager=$1
  shift
  command=$(install_command "$manager")
  names=$(for what in "$@"; do packages "$manager" "$what"; done | xargs)
  if [ "$manager" = apt-get ]; then
    refresh_lists
    case $names in
      *mesa*)
        if on_bookworm; then
          say "Set-up: taking Mesa from bookworm-backports."
          if add_backports; then
            command="$command -t bookworm-backports"
          else
            say "warning: bookworm-backports cannot be reached; the release's own Mesa is several times slower."
          fi
        fi
        ;;
    esac
  fi
  say "Set-up: installing $names."
  # shellcheck disable=SC2086 # a command and a list of names
  quietly as_root $command $names
}

# The whole set-up. $1 is `required` if a run without a GPU is of no use.
set_up() {
  command -v cargo >/dev/null ||
    stop "cargo is not on the PATH; install Rust 1.95 or newer, then run this again."
  if [ "$(uname -s)" != Linux ]; then
    command -v cc >/dev/null || [ "$(uname -s)" != Darwin ] ||
      stop "a C linker is missing; run: xcode-select --install"
    say "Set-up: nothing to do on this system."
    return
  fi

  gpu=${1:-}
  set --
  command -v cc >/dev/null || set -- linker
  if ! has_vulkan || has_slow_lavapipe; then set -- "$@" vulkan; fi
  if [ $# -eq 0 ]; then
    say "Set-up: cargo, a C linker and a Vulkan driver are here."
    return
  fi

  if manager=$(package_manager) && can_be_root; then
    install "$manager" "$@" || say "warning: the installation failed; what it printed is above."
  elif [ -n "$manager" ]; then
    update=
    [ "$manager" != apt-get ] || update="apt-get update && "
    say "Set-up: neither root nor sudo is at hand. Run as root: ${update}$(install_command "$manager") $(
      for what in "$@"; do packages "$manager" "$what"; done | xargs
    )"
  else
    say "Set-up: no package manager is known here; install a C linker and a Vulkan driver by hand."
  fi

  command -v cc >/dev/null || stop "cargo cannot link without a C compiler (cc)."
  if ! has_vulkan; then
    [ "$gpu" != required ] || stop "there is no Vulkan loader with a driver on this machine."
    say "warning: there is no Vulkan driver here; what needs a GPU is skipped."
  elif has_slow_lavapipe; then
    say "warning: the Mesa installed here is old and several times slower than version 25."
  fi
}
