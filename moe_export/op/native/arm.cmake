# Sets the flags of the Arm kernels in a folder of sources, as the compiler spells them: GCC and
# clang take -march, zig takes -mcpu. GCC before 10 does not know i8mm; then the file has no kernels.
include(CheckCXXCompilerFlag)

function(arm_flags folder)
  # GCC 12's default for Arm spills sums of one row, so that int4 takes 9 % more instructions.
  set(scheduling $<$<CXX_COMPILER_ID:GNU>:--param=sched-pressure-algorithm=1>)
  set(5_dotprod dotprod)
  set(6_i8mm dotprod+i8mm)
  set(7_fhm fp16fml)
  foreach(kernel 5_dotprod 6_i8mm 7_fhm)
    set(features ${${kernel}})
    foreach(flag -march=armv8.2-a+${features} -mcpu=generic+v8_2a+${features})
      string(MAKE_C_IDENTIFIER "MOE_EXPORT_HAS${flag}" known)
      check_cxx_compiler_flag(${flag} ${known})
      if(${known})
        set_source_files_properties(${folder}/kernels_${kernel}.cc
          PROPERTIES COMPILE_OPTIONS "${flag};${scheduling}")
        break()
      endif()
    endforeach()
  endforeach()
endfunction()
